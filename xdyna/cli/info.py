"""`xdyna info`: what would run here, on what, and with what."""

from __future__ import annotations

from xdyna.cli.common import DeviceOption, DtypeOption, JsonOption, announce, emit_json


def info(device: DeviceOption = None, dtype: DtypeOption = None, as_json: JsonOption = False) -> None:
    """Show device, number type, attention backends, memory, versions and the models that are found."""
    from xdyna.configs import load_config
    from xdyna.configs.animate import AnimateConfig
    from xdyna.infer.info import collect

    settings = load_config(AnimateConfig, values={"device": device, "dtype": dtype})
    facts = collect(settings.device, settings.dtype)
    if as_json:
        emit_json(facts)
        return
    announce(f"xdyna {facts['xdyna']} in {facts['folder']}, Python {facts['python']}, {facts['system']}")
    about = ", ".join(f"{key} {value}" for key, value in facts["device"].items() if key != "name")
    announce(f"device: {facts['device']['name']} ({about})")
    announce(f"number type: {facts['dtype']}")
    taken = f"; {facts['attention_taken']} is taken" if facts["attention_taken"] else ""
    announce(f"attention: fused, {' or '.join(facts['attention'])}{taken}")
    memory = [f"{name.replace('_', ' ')} {gib:g} GiB" for name, gib in facts["memory"].items()]
    announce(f"memory: {', '.join(memory)}")
    installed = {name: number for name, number in facts["versions"].items() if number}
    announce(f"libraries: {', '.join(f'{name} {number}' for name, number in installed.items())}")
    built = [f"{name} {number}" for name, number in facts["built_with"].items() if number]
    announce(f"built with: {', '.join(built)}")
    announce(f"not installed: {', '.join(name for name in facts['versions'] if name not in installed)}")
    for model in facts["models"]:
        name, chosen = model["name"], " (what `--model auto` takes)" if model.get("auto") else ""
        announce(f"model {name}{chosen}: {model['about'].removeprefix(f'model {name}: ')}")
