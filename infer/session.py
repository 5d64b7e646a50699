"""A model kept over many jobs, with what the jobs share."""

from __future__ import annotations

import logging
import time
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from xdyna.configs.animate import AnimateConfig
from xdyna.configs.fast import with_preset
from xdyna.errors import UserError
from xdyna.files import refuse_inputs
from xdyna.infer.animate import AnimateJob, OnProgress, Result, preview_path
from xdyna.infer.faults import DeviceLost, between_steps, faults_told
from xdyna.infer.finish import Finisher
from xdyna.infer.found import Found
from xdyna.infer.kept import Kept, array_sha256, folder_stamp
from xdyna.infer.load import (
    ModelChoice,
    build_scheduler,
    choose_device,
    choose_dtype,
    choose_model,
    load_pipeline,
    split_lora,
)
from xdyna.infer.processes import Team
from xdyna.infer.profile import NoProfile, Profile, profile_folder
from xdyna.infer.saving import Saving, all_facts, job_facts, see_same_job
from xdyna.infer.sources import Sources
from xdyna.infer.threads import Meanwhile, Tell
from xdyna.infer.time_left import JobWatch, watch_job
from xdyna.infer.weights_hash import changed
from xdyna.infer.work import Work
from xdyna.infer.write import Clip, write_clip
from xdyna.preprocess.prepare import Prepared
from xdyna.provenance import provenance
from xdyna.video import check_output

if TYPE_CHECKING:
    import torch
    from diffusers import AutoencoderTiny
    from torch import Tensor

    from xdyna.denoise import Predictor
    from xdyna.infer.engine.fit import Fitted
    from xdyna.infer.engine.memory import Shapes
    from xdyna.infer.engine.plan import Plan
    from xdyna.infer.engine.preview import Preview
    from xdyna.pipeline import XDynaPipeline

#: Settings that decide, with the model, what a step and a frame cost.
_SORT = {
    "size",
    "window",
    "overlap",
    "window_batch",
    "vae_batch",
    "small_decoder",
    "fast",
    "upscale",
    "codec",
    "compare",
}

logger = logging.getLogger("xdyna")


@dataclass
class _Loaded:
    """A model on its device, and what it made of photos and prompts so far.

    Attributes:
        key: what it was loaded from: another key is another model.
        choice: why it was chosen.
        pipe: the pipeline.
        scheduler: its own; each job gets a new one.
        references: clean latents of a photo, by its pixels at the model's size and by seed.
        prompts: text embeddings.
        images: hidden states of the image encoder, by the photo's pixels.
        shapes: to count memory with, once it is counted.
    """

    key: Hashable
    choice: ModelChoice
    pipe: XDynaPipeline
    scheduler: Any
    references: Kept[Tensor] = field(default_factory=lambda: Kept(32))
    prompts: Kept[Tensor] = field(default_factory=lambda: Kept(32))
    images: Kept[tuple[Tensor, Tensor | None]] = field(default_factory=lambda: Kept(16))
    shapes: Shapes | None = None


@dataclass(frozen=True)
class _Drawn:
    """The last clip that was prepared, with what was said meanwhile."""

    key: Hashable
    prepared: Prepared
    said: list[tuple[int, str]]


class Session:
    """Runs jobs one after the other. The same job writes the same bytes in any session, whatever ran before it.

    One model is kept, the last. What was found in photos and driving videos, reference latents and embeddings are kept
    for the jobs after, by content and up to a number of each.

    Args:
        overlap: find poses while the model loads and write frames while the next are decoded; off, one thing is done
            after the other.
        team: processes that all run this job and spread its windows among them; the first one writes. By default this
            process alone.
    """

    def __init__(self, *, overlap: bool = True, team: Team | None = None) -> None:
        self._overlap = overlap
        self._team = team or Team()
        self._found = Found()
        self._loaded: _Loaded | None = None
        self._drawn: _Drawn | None = None
        self._costs: dict[Hashable, dict[str, float]] = {}  # seconds, of the last job of each sort
        self._profile = NoProfile()  # of the job that runs
        self._lost: DeviceLost | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the model and of all that is kept."""
        self._let_go()
        self._drawn = None
        self._found.close()
        self._found = Found()

    @contextmanager
    def _faults_told(self, config: AnimateConfig, device: torch.device, work: Work) -> Iterator[None]:
        """See `faults_told`; no job is begun on a device that another one lost."""
        if self._lost is not None and device.type == "cuda":
            raise DeviceLost(f"not begun, as an earlier job found no device any more: {self._lost}")
        try:
            with faults_told(config, device, work):
                yield
        except DeviceLost as error:
            self._lost = error
            raise

    def _let_go(self) -> None:
        if self._loaded is not None:
            self._loaded.choice.hashing.stop()
        self._loaded = None

    def run(
        self,
        job: AnimateJob,
        on_progress: OnProgress = lambda stage, done, total: None,
        *,
        resume: bool | None = None,
        restart: bool = False,
    ) -> Result:
        """Run one job; see `xdyna.infer.animate.animate`."""
        began_s = time.monotonic()
        measured = job.config.profile and self._team.leads
        profile = self._profile = Profile(profile_folder(job.output)) if measured else NoProfile()
        sources = Sources.open(job.reference, job.driving, job.config)
        choice = choose_model(job.config.model)
        config, notes = with_preset(job.config, choice.defaults())
        config = config.with_model_defaults(choice.defaults())
        for note in notes:
            logger.info("%s", note)
        finish = Finisher(config.sampling().size_wh, config.upscale, config.watermark)
        team = self._team
        if team.leads:
            _check_outputs(job, sources, finish.size_wh)
        device = team.device(choose_device(config.device))
        _check_compile(config, device)
        held = Work(job.output, restart=restart, ignore=resume is False, follows=not team.leads)
        with held as work, self._faults_told(config, device, work):
            profile.on(device)
            work.check(job_facts(config, device))
            loaded, prepared = self._load_and_prepare(sources, choice, config, device, on_progress)
            plan = _plan(config, loaded, device, len(prepared.pose_maps), prepared.face_maps is not None, work)
            plan = _plan_of_all(plan, team, going_on=work.has_state())
            config = config.model_copy(update={"window_batch": plan.window_batch, "vae_batch": plan.vae_batch})
            logger.info("%s", plan.line())
            _check_compile(config, device, plan)
            from xdyna.infer.engine.fit import Fitted

            fitted = Fitted(loaded.pipe, device, plan, fixed=config.deterministic, may_part=_may_part(config))
            decoder = _small_decoder(config, loaded.pipe)
            facts = partial(all_facts, config, device, loaded.choice, sources, prepared)
            see_same_job(team, facts)
            saving = Saving(work, facts, always=resume, team=team)
            preview = _preview(job, config, loaded, prepared, decoder) if team.leads else None
            sort = (loaded.key, config.model_dump_json(include=_SORT))
            watch = watch_job(
                config, len(prepared.pose_maps), face=prepared.face_maps is not None,
                schedule=loaded.pipe.config.schedule, on_progress=on_progress, known=self._costs.get(sort, {}),
            )  # fmt: skip
            with between_steps(on_progress, lambda: saving.is_on and team.size == 1) as stoppable:
                latents = _denoise(
                    loaded, config, sources, prepared, saving, fitted, preview, stoppable, team, watch, profile
                )
            if not team.leads:
                written: Result = team.receive()
                return written
            clip = Clip(
                job, config, loaded.choice, sources, prepared, finish, loaded.pipe, latents, decoder, fitted, profile
            )
            result = write_clip(clip, watch.writing(on_progress), began_s, beside=self._overlap)
            self._costs[sort] = watch.time_left.costs_s()
            if preview is not None:
                preview.finish()
            if resume is not False:
                work.discard()
            profile.write(f"{job.output}: {loaded.choice.name} on {device}, {plan.line()}", result.num_frames)
            return team.broadcast(result)

    def plan(self, job: AnimateJob) -> str:
        """One line: how a job would be fitted into memory, with what was counted. Nothing is written.

        Raises:
            UserError: as for `run`, as far as it can be told before the clip is looked at.
        """
        sources = Sources.open(job.reference, job.driving, job.config)
        choice = choose_model(job.config.model)
        config = with_preset(job.config, choice.defaults())[0].with_model_defaults(choice.defaults())
        device = choose_device(config.device)
        _check_compile(config, device)
        loaded = self._load(choice, config, device)
        _check_settings(loaded.pipe, config)
        face = sources.driving is not None and _wants_face(choice, config)
        return _plan(config, loaded, device, sources.num_frames(config), face, count=True).line()

    def _load_and_prepare(
        self,
        sources: Sources,
        choice: ModelChoice,
        config: AnimateConfig,
        device: torch.device,
        on_progress: OnProgress,
    ) -> tuple[_Loaded, Prepared]:
        """Both at once, told as if one came after the other."""
        # What the model refuses anyway is not prepared; what loads networks of its own with torch waits for ours.
        beside = self._overlap and choice.check_size(config.sampling().size_wh)
        beside = beside and config.detector != "controlnet-aux"
        prepare = partial(self._prepare, sources, config, _wants_face(choice, config), on_progress)
        with Meanwhile(prepare, beside=beside) as preparing:
            on_progress("load model", 0, 1)
            with self._profile.span("load"):
                loaded = self._load(choice, config, device)
            _check_settings(loaded.pipe, config)
            on_progress("load model", 1, 1)
            logger.info("%s", choice.announcement)
            with self._profile.span("wait for poses"):
                return loaded, preparing.result()

    def _load(self, choice: ModelChoice, config: AnimateConfig, device: torch.device) -> _Loaded:
        """The model of a config with a scheduler as good as new: the one that is loaded, or another in its place."""
        import torch

        from xdyna.infer.engine.compiled import compile_blocks, release_blocks

        dtype = choose_dtype(config.dtype, device)
        loras = [split_lora(text) for text in config.lora]
        key = (
            str(choice.folder.resolve()), folder_stamp(choice.folder), str(device), str(dtype), config.quantize,
            tuple((str(path.resolve()), scale, path.stat().st_mtime_ns, path.stat().st_size) for path, scale in loras),
        )  # fmt: skip
        if self._loaded is None or self._loaded.key != key:
            self._let_go()  # two do not fit where one just does
            _ = choice.hashing  # from now on: what is loaded is what the hash names, whatever takes its place later
            if config.quantize is not None:
                from xdyna.infer.engine.quantize import check_quantize, quantize_pipeline

                check_quantize(config.quantize, device, dtype)
            # A GPU gets them once a plan says what of it.
            first = torch.device("cpu") if device.type == "cuda" else device
            pipe = load_pipeline(choice, config.model_copy(update={"scheduler": None}), first, dtype)
            if config.quantize is not None:
                logger.info("%s", quantize_pipeline(pipe, config.quantize).line())
            if folder_stamp(choice.folder) != key[1]:
                raise changed(choice.folder)
            self._loaded = _Loaded(key, choice, pipe, pipe.scheduler)
        loaded = self._loaded
        fresh = type(loaded.scheduler).from_config(loaded.scheduler.config)
        loaded.pipe.scheduler = build_scheduler(config.scheduler, fresh, config.fast.spacing)
        (compile_blocks if config.compile else release_blocks)(loaded.pipe)
        return loaded

    def _prepare(
        self, sources: Sources, config: AnimateConfig, face: bool, on_progress: OnProgress, tell: Tell
    ) -> Prepared:
        """What the model reads: drawn for the job before where nothing of it differs, else drawn now."""
        key = (*sources.content(config, self._found), face)
        if self._drawn is None or self._drawn.key != key:
            self._drawn = None
            said: list[tuple[int, str]] = []

            def say(level: int, line: str) -> None:
                said.append((level, line))
                tell(partial(logger.log, level, "%s", line))

            def progress(stage: str, done: int, total: int) -> None:
                self._profile.stage(stage, done, total)
                tell(partial(on_progress, stage, done, total))

            with self._profile.span("prepare"):
                prepared = sources.prepare(config, face=face, on_progress=progress, found=self._found, say=say)
            self._drawn = _Drawn(key, prepared, said)
        else:
            for level, line in self._drawn.said:
                tell(partial(logger.log, level, "%s", line))
        return self._drawn.prepared


def _check_outputs(job: AnimateJob, sources: Sources, size_wh: tuple[int, int]) -> None:
    """Look at every place that will be written before any work is done."""
    for path in job.outputs:
        check_output(path, job.config.codec, sources.fps, job.inputs, size_wh=size_wh)
    if job.config.preview:
        refuse_inputs([preview_path(job.output)], job.inputs)
    if job.config.save_maps is not None:
        sources.check_map_places(job.config.save_maps, job.inputs)


def _check_settings(pipe: XDynaPipeline, config: AnimateConfig) -> None:
    """Refuse, in the user's terms, what this model cannot do."""
    from xdyna.infer.engine.presets import check_fast

    sampling = config.sampling()
    try:
        pipe.check_size(*sampling.size_wh)
    except ValueError as error:
        raise UserError(f"--size: {error}; --upscale N enlarges the result") from None
    longest = pipe.unet.config.motion_max_seq_length
    if sampling.window > longest:
        raise UserError(f"--window: got {sampling.window} frames, this model takes at most {longest}")
    finest = pipe.scheduler.config.num_train_timesteps - 1
    if sampling.steps > finest:
        raise UserError(f"--steps: got {sampling.steps}, this model takes at most {finest}")
    for name in ("prompt", "negative_prompt"):
        if getattr(config, name) and pipe.tokenizer is None:
            flag = name.replace("_", "-")
            raise UserError(f"--{flag}: this model has no text encoder and takes no prompt; leave it out")
    if config.face and pipe.face_controlnet is None:
        raise UserError("--face: this model has no face ControlNet; leave it out")
    if config.adapter_scale != 1 and pipe.dynamics_adapter is None:
        raise UserError("--adapter-scale: this model has no Dynamics-Adapter; leave it out")
    check_fast(pipe, config)
    if config.near_reference and pipe.dynamics_adapter is None:
        raise UserError("--near-reference: this model has no Dynamics-Adapter; leave it out")
    if config.near_reference and not pipe.unet.config.pool_group_norm:
        raise UserError(
            "--near-reference: this model's norm is per frame, so its reference runs once a step anyway, exactly; "
            "leave it out"
        )


def _check_compile(config: AnimateConfig, device: torch.device, plan: Plan | None = None) -> None:
    """Refuse what cannot be compiled or recorded here, or under a plan."""
    if config.compile:
        from xdyna.infer.engine.compiled import check_compiler, check_offload

        check_compiler(device)
        if plan is not None:
            check_offload(plan)
    if config.cuda_graphs:
        from xdyna.infer.engine.graphs import check_graphs, check_graphs_fit

        check_graphs(device, config)
        if plan is not None:
            check_graphs_fit(plan)


def _wants_face(choice: ModelChoice, config: AnimateConfig) -> bool:
    return choice.has("face_controlnet") and config.face is not False and config.face_scale > 0


def _small_decoder(config: AnimateConfig, pipe: XDynaPipeline) -> AutoencoderTiny | None:
    """What decodes in the VAE's place, if the config names it."""
    from xdyna.infer.engine.small_decoder import load_small_decoder

    return None if config.small_decoder is None else load_small_decoder(config.small_decoder, pipe)


def _preview(
    job: AnimateJob, config: AnimateConfig, loaded: _Loaded, prepared: Prepared, decoder: AutoencoderTiny | None
) -> Preview | None:
    """What shows the frames while they are made, if the config asks for it."""
    if not config.preview:
        return None
    from xdyna.infer.engine.preview import open_preview

    choice = loaded.choice
    metadata = provenance(model=choice.name, model_hash=choice.sha256, seed=config.seed)
    return open_preview(loaded.pipe, config, preview_path(job.output), prepared.reference, decoder, metadata)


def _plan(
    config: AnimateConfig,
    loaded: _Loaded,
    device: torch.device,
    num_frames: int,
    face: bool,
    work: Work | None = None,
    *,
    count: bool = False,
) -> Plan:
    """What the job does about memory: counted where there is a limit, or where asked to."""
    from xdyna.infer.engine.memory import Shapes
    from xdyna.infer.engine.plan import GIB, Plan, make_plan, work_of
    from xdyna.infer.engine.predict import DEFAULT_FEATURES_BYTES
    from xdyna.infer.engine.small_frames import cpu_batches

    # The batch of work that goes on is the one it began with: another would change its bytes.
    begun = work.saved_fact("window_batch") if work is not None and config.window_batch == "auto" else None
    auto = 1 if config.deterministic else None  # then the networks see batches of one anyway
    windows = begun or (auto if config.window_batch == "auto" else config.window_batch)
    frames = auto if config.vae_batch == "auto" else config.vae_batch
    if device.type == "cpu" and config.vram == "auto":
        sampling = config.sampling()
        paying = cpu_batches(loaded.pipe, sampling.size_wh, sampling.window, guided=sampling.guidance > 1)
        windows, frames = windows or paying.windows, frames or paying.frames
    if device.type != "cuda" and config.vram == "auto" and not count:
        return Plan(device.type, str(loaded.pipe.unet.dtype).removeprefix("torch."), windows or 1, frames or 1)
    if loaded.shapes is None:
        loaded.shapes = Shapes(loaded.pipe)
    return make_plan(
        loaded.shapes,
        work_of(config, num_frames, face=face, schedule=loaded.pipe.config.schedule),
        device,
        budget=None if config.vram == "auto" else int(config.vram * GIB),
        window_batch=windows,
        vae_batch=frames,
        features_bytes=DEFAULT_FEATURES_BYTES,
        may_part=_may_part(config),
    )


def _plan_of_all(plan: Plan, team: Team, *, going_on: bool) -> Plan:
    """The plan with the window batch that every process of a job takes: the least, or that of the work that goes on."""
    wanted = team.gather((plan.window_batch, going_on))
    batch = wanted[0][0] if wanted[0][1] else min(batch for batch, _ in wanted)
    return replace(plan, window_batch=batch)


def _may_part(config: AnimateConfig) -> bool:
    """Whether the halves of guidance can run apart: what takes from step to step looks into the UNet."""
    from xdyna.infer.engine.predict import ExactPredictor
    from xdyna.infer.engine.presets import build_predictor

    return type(build_predictor(config)) is ExactPredictor


def _denoise(
    loaded: _Loaded,
    config: AnimateConfig,
    sources: Sources,
    prepared: Prepared,
    saving: Saving,
    fitted: Fitted,
    preview: Preview | None,
    on_progress: OnProgress,
    team: Team,
    watch: JobWatch,
    profile: NoProfile,
) -> Tensor:
    """The clip's latents, [1, C, F, h, w]."""
    import torch

    from xdyna.infer.engine.compiled import compiling
    from xdyna.infer.engine.graphs import graphed
    from xdyna.infer.engine.long import anchored, chosen_noise
    from xdyna.infer.engine.presets import build_predictor
    from xdyna.infer.engine.spread import Spread

    pipe, sampling, window_batch = loaded.pipe, config.sampling(), config.window_batch
    assert window_batch != "auto"
    predictor = build_predictor(config)
    if team.size > 1:
        predictor.spread = Spread(team)
    step_predictor: Predictor = predictor
    if config.cuda_graphs:
        step_predictor = graphed(step_predictor)
    if config.compile:
        step_predictor = compiling(step_predictor)
    within = fitted.predictor(anchored(step_predictor, pipe.scheduler, config))
    predictor.span = profile.span

    def on_window(done: int, total: int) -> None:
        watch.window(done, total)
        profile.called()

    predictor.on_window = on_window
    state = saving.begin()
    begun = 0 if state is None else state.step
    on_progress("denoise", begun, sampling.steps)
    embeddings = _embeddings(loaded, config, sources, prepared, fitted, watch, profile)
    watch.begin(begun)

    def after_step(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        profile.stepped()
        if predictor.starts_afresh(step + 1):
            with profile.span("save"):
                saving.after_step(pipe, step, tensors["latents"])
        watch.step()
        on_progress("denoise", step + 1, pipe.num_timesteps)
        return {}

    output: Any = profile.around("denoise", pipe)(
        None,
        prepared.pose_maps,
        prepared.face_maps,
        **embeddings,
        width=sampling.size_wh[0],
        height=sampling.size_wh[1],
        generator=torch.Generator("cpu").manual_seed(config.seed),
        **config.call_settings(),
        window_batch=window_batch,
        output_type="latent",
        callback_on_step_end=after_step,
        predictor=profile.steps(within if preview is None else preview.predictor(within), begun),
        noise=chosen_noise(config, pipe, len(prepared.pose_maps)),
        state=state,
        latents_device="cpu",  # where they may grow with the clip
    )
    latents: Tensor = output.frames
    pipe.scheduler = loaded.scheduler  # the job's keeps what was predicted in the last steps
    if not all(bool(frame.isfinite().all()) for frame in latents.unbind(2)):
        raise UserError(
            f"the model gave NaN or infinite values with --dtype {config.dtype} and --scheduler {config.scheduler}; "
            "try --dtype float32"
        )
    return latents


def _embeddings(
    loaded: _Loaded,
    config: AnimateConfig,
    sources: Sources,
    prepared: Prepared,
    fitted: Fitted,
    watch: JobWatch,
    profile: NoProfile,
) -> dict[str, Any]:
    """What the pipeline would encode itself, with the same random numbers: each is encoded once in a session."""
    import torch

    pipe, sampling = loaded.pipe, config.sampling()
    guided = sampling.guidance > 1

    def reference() -> Tensor:
        def encode() -> Tensor:
            generator = torch.Generator("cpu").manual_seed(config.seed)
            return pipe.encode_reference(prepared.reference, sampling.size_wh, generator).cpu()  # waits for a GPU

        began_s = time.monotonic()
        with profile.span("encode"):
            latents = fitted.attempt("the photo", encode)
        watch.encoded(time.monotonic() - began_s)
        return latents

    def prompt(text: str, name: str) -> Tensor:
        with profile.span("embed"):
            return loaded.prompts.fetch(
                text, lambda: fitted.attempt(f"the {name}", lambda: pipe.encode_prompt(text or None, name))
            )

    values: dict[str, Any] = {
        "reference_latents": loaded.references.fetch(
            (array_sha256(prepared.reference), sampling.size_wh, config.seed), reference
        ),
        "prompt_embeds": prompt(config.prompt, "prompt"),
        "negative_prompt_embeds": prompt(config.negative_prompt, "negative_prompt") if guided else None,
    }
    if pipe.image_prompt is not None:
        key = (array_sha256(sources.photo), guided)
        with profile.span("embed"):
            values["image_embeds"], values["negative_image_embeds"] = loaded.images.fetch(
                key, lambda: fitted.attempt("the photo", lambda: pipe.encode_image(sources.photo, negative=guided))
            )
    return values
