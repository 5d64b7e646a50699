"""Where the settings of jobs come from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from xdyna.configs import load_config
from xdyna.configs.animate import AnimateConfig
from xdyna.jobs import Job


class Settings:
    """Settings of a command line, to be resolved for each job.

    Strongest first: options, `--set`, the job's own, `--config`.

    Args:
        config: preset or file.
        overrides: `KEY=VALUE`, as for `--set`.
        options: values by name; those that were not given do not count.
    """

    def __init__(self, config: str | None, overrides: list[str], options: Mapping[str, Any]) -> None:
        self.config = config or "infer/auto"
        self.overrides = overrides
        # A repeatable option that was not used is an empty list; it must not hide what a config says.
        self.options = {key: value for key, value in options.items() if value not in (None, [], ())}

    def resolve(self, job: Job | None = None) -> AnimateConfig:
        """All settings of a job.

        Raises:
            UserError: an unknown setting, or a value that makes no sense.
        """
        below = [(job.origin, job.settings)] if job and job.settings else []
        return load_config(AnimateConfig, self.config, self.overrides, below=below, values=self.options)
