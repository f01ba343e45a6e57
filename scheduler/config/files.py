"""`load_settings`: reads the configuration files, and checks every section and option in them."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jupyter_core.paths import jupyter_config_path
from traitlets import TraitError
from traitlets.config import Config
from traitlets.config.loader import ConfigFileNotFound, JSONFileConfigLoader, PyFileConfigLoader

from roost.launchers.daemon.file_input import show_path
from roost.scheduler.backends.registry import backend_names, get_spec, load_object
from roost.scheduler.backends.spec import describe_unknown
from roost.scheduler.errors import ConfigError
from roost.scheduler.input_files import check_input, read_input_json

from .section import Memory, Section
from .settings import Settings
from .trait_errors import describe_refusal

CONFIG_NAME = "jupyter_roost_config"
Note = Callable[[Path], None]
"""It is called with each file before that file is read."""


def _ignore(_: Path) -> None:
    """Note nothing."""


def load_settings(
    backend: str,
    options: Mapping[str, Any],
    *,
    path: Sequence[str] | None = None,
    note: Note = _ignore,
) -> tuple[Settings, Section]:
    """Return the scheduler's settings and the backend's; raise `ConfigError`, which names the wrong key.

    Reads `config_file` if the options name one. Otherwise reads every `jupyter_roost_config` on `path`
    (default: Jupyter's); the value in the first folder of `path` wins. The other `options` are settings of
    the backend and override its section in the files. `note` gets each file that is read or looked for.
    """
    files = Path(config_file) if (config_file := options.get("config_file")) else None
    config, origins = _read_all(files, jupyter_config_path() if path is None else path, note)
    own = _load_section(backend)
    classes: dict[str, type[Section]] = {Settings.__name__: Settings, own.__name__: own}
    others = {get_spec(name).section: name for name in backend_names() if name != backend}
    for section, values in config.items():
        if section not in classes:
            if section not in others:
                names = [f"c.{name}" for name in (*classes, *others)]
                unknown = describe_unknown("section", f"c.{section}", names)
                raise ConfigError(f"{show_path(origins[section, ''])}: {unknown}")
            classes[section] = _load_section(others[section])
        for name in values:
            if name not in (known := classes[section].class_traits(config=True)):
                unknown = describe_unknown(f"option of c.{section}", name, known)
                raise ConfigError(f"{show_path(origins[section, name])}: {unknown}")
    given = _to_values(backend, own, options)
    config.merge(Config({own.__name__: given}))
    if given:  # a wrong value may be one of these
        origins = {key: file for key, file in origins.items() if key[0] != own.__name__}
    sections = {name: _build(section, config, origins) for name, section in classes.items()}
    settings = sections[Settings.__name__]
    assert isinstance(settings, Settings)
    return settings, sections[own.__name__]


def _build(section: type[Section], config: Config, origins: Mapping[tuple[str, str], Path]) -> Section:
    """Make a section. Raises `ConfigError`, which names the file if all settings are from one."""
    name = section.__name__
    files = {show_path(file) for (owner, _), file in origins.items() if owner == name}
    where = f"{files.pop()}: " if len(files) == 1 else ""
    try:
        return section(config=config)
    except TraitError as problem:
        wrong = describe_refusal(problem, section, config.get(name, {}))
        raise ConfigError(f"{where}a setting of c.{name} is wrong: {' '.join(wrong.split())}") from None


def _load_section(backend: str) -> type[Section]:
    reference = get_spec(backend).settings
    section = load_object(reference, f"the settings of the backend {backend}")
    if not (isinstance(section, type) and issubclass(section, Section)):
        raise ConfigError(f"the settings of the backend {backend}, {reference}, are no Section.")
    return section


def _to_values(backend: str, section: type[Section], options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options by the section's trait names. An option `<name>_bytes` sets the memory trait `<name>`."""
    traits = section.class_traits(config=True)
    aliases = {f"{name}_bytes": name for name, trait in traits.items() if isinstance(trait, Memory)}
    values = {}
    for name, value in options.items():
        if (trait := aliases.get(name, name)) not in traits and name != "config_file":
            known = [*traits, "config_file"]
            raise ConfigError(describe_unknown(f"option of the backend {backend}", name, known))
        if value is not None and name != "config_file":
            values[trait] = value
    return values


def _read_all(
    file: Path | None, path: Sequence[str], note: Note
) -> tuple[Config, dict[tuple[str, str], Path]]:
    """Return what the files say, and the file of each setting by section and name; by an empty name of each section."""
    if file is not None and not file.is_file():
        raise ConfigError(f"there is no configuration file {file}.", config_file=str(file))
    names = (f"{CONFIG_NAME}.py", f"{CONFIG_NAME}.json")
    config, origins = Config(), dict[tuple[str, str], Path]()
    for each in [file] if file else [Path(folder, name) for folder in reversed(path) for name in names]:
        note(each)
        found = _read(each, note)
        config.merge(found)
        origins |= {(section, name): each for section, values in found.items() for name in (*values, "")}
    return config, origins


def _read(file: Path, note: Note) -> Config:
    class PyLoader(PyFileConfigLoader):  # type: ignore[misc,unused-ignore]
        """A loader that notes the files of `load_subconfig` too, which it makes loaders of its own class for."""

        def _find_file(self) -> None:
            super()._find_file()
            note(Path(self.full_filename))

    is_json = file.suffix == ".json"
    loader = JSONFileConfigLoader if is_json else PyLoader
    if os.path.lexists(file):  # a link that leads nowhere is no missing file
        (read_input_json if is_json else check_input)(file)
    try:
        config = loader(file.name, path=str(file.parent)).load_config()
    except ConfigFileNotFound:
        return Config()
    except SystemExit as problem:
        raise ConfigError(f"{file} cannot be read: it ends Python ({problem!r:.80}).") from None
    except Exception as problem:  # noqa: BLE001 - a configuration file is anybody's Python
        reason = " ".join(str(problem).split())[:500]
        raise ConfigError(f"{file} cannot be read: {type(problem).__name__}: {reason}") from None
    for section, values in config.items():
        if not isinstance(values, dict):
            raise ConfigError(
                f"{file} has {values!r:.40} as {section!r:.40} instead of a section of options."
            )
    _resolve_paths(config, file.parent)
    return config


def _resolve_paths(config: Config, folder: Path) -> None:
    """Make the paths of policies absolute. A relative path starts at `folder`, the configuration file's folder."""

    def resolve(spec: Any) -> Any:
        path, _, attribute = str(spec).rpartition(":")
        is_file = isinstance(spec, str) and path.endswith(".py")
        return f"{folder.resolve() / Path(path).expanduser()}:{attribute}" if is_file else spec

    own = config.get("RoostScheduler", {})
    if isinstance(own.get("policies"), dict):
        own["policies"] = {name: resolve(spec) for name, spec in own["policies"].items()}
    if "default_policy" in own:
        own["default_policy"] = resolve(own["default_policy"])
