"""The `KERNEL_*` variables in a kernelspec's `env`: requests, options of the backend, and what roost does not need."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from .amounts import format_memory, read_cpus, read_memory, read_quantity
from .draft import Draft
from .launcher_options import set_class, set_mode
from .options_table import describe
from .report import Outcome
from .secrets import show
from .stanza_options import HANDLERS, set_allowed
from .volumes import is_supported, join_volumes


def translate_variables(draft: Draft, env: dict[str, str]) -> None:
    """Take the `KERNEL_*` variables out of `env` that have a meaning, with a line for each."""
    for name, option in _AS_OPTIONS.items():
        if name in env:
            HANDLERS[option](draft, env.pop(name), f"env {name}")
    for name, handle in _HANDLERS.items():
        if name in env:
            handle(draft, env, name)
    for name in [name for name in env if describe("env-kernel", name)]:
        if name not in _KEPT:
            draft.say(f"env {name}", "dropped", describe("env-kernel", name))
            del env[name]


def _set_cpus(draft: Draft, env: dict[str, str], name: str) -> None:
    value = env.pop(name)
    try:
        draft.config["cpus"] = read_cpus(value)
    except ValueError as problem:
        draft.say(f"env {name}", "decision", f"{problem}: set cpus", "no CPUs are promised")
        return
    draft.say(f"env {name}", "translated", f"cpus = {draft.config['cpus']}")


def _limit_cpus(draft: Draft, env: dict[str, str], name: str) -> None:
    del env[name]
    draft.say(
        f"env {name}", "dropped", "c.RoostKubernetesBackend.limit_cpus limits all kernels to their request"
    )


def _set_memory(draft: Draft, env: dict[str, str], name: str) -> None:
    """Take the request and the limit. roost has one amount for both: the request, or the limit if it is alone."""
    found: dict[str, int] = {}
    for each in ("KERNEL_MEMORY", "KERNEL_MEMORY_LIMIT"):
        if each in env:
            try:
                found[each] = read_memory(env.pop(each))
            except ValueError as problem:
                text = f"{problem}: set memory"
                draft.say(f"env {each}", "decision", text, "no memory is promised")
    if not found:
        return
    size = found.get("KERNEL_MEMORY", found.get("KERNEL_MEMORY_LIMIT", 0))
    draft.config["memory"] = format_memory(size)
    for each, own in found.items():
        if own == size:
            draft.say(
                f"env {each}", "translated", f"memory = {draft.config['memory']}, the request and the limit"
            )
        else:
            text = f"request and limit are one amount in roost: {draft.config['memory']}, or {format_memory(own)}"
            draft.say(f"env {each}", "decision", text, draft.config["memory"])


def _set_gpus(draft: Draft, env: dict[str, str], name: str) -> None:
    """Take the request and the limit of GPUs, which are one amount in Kubernetes too."""
    for each in ("KERNEL_GPUS", "KERNEL_GPUS_LIMIT"):
        if each not in env:
            continue
        try:
            count = read_quantity(env.pop(each))
            if count != int(count) or count > 1024:
                raise ValueError("it is no whole number of GPUs")
        except ValueError as problem:
            draft.say(f"env {each}", "decision", f"{problem}: set gpus", "no GPU")
            continue
        if draft.config.setdefault("gpus", int(count)) == count:
            draft.say(f"env {each}", "translated", f"gpus = {int(count)}")
        else:
            chosen = draft.config["gpus"]
            draft.say(f"env {each}", "decision", f"gpus is {chosen} or {int(count)}", f"{chosen}")


def _set_namespace(draft: Draft, env: dict[str, str], name: str) -> None:
    set_allowed(draft, "namespace", "allowed_namespaces", env.pop(name), f"env {name}")


def _set_service_account(draft: Draft, env: dict[str, str], name: str) -> None:
    """Take the service account. Spark's driver needs its token too, because it makes the executors."""
    setting = "token_service_accounts" if draft.is_spark else "allowed_service_accounts"
    set_allowed(draft, "service_account", setting, env.pop(name), f"env {name}")


def _set_volumes(draft: Draft, env: dict[str, str], name: str) -> None:
    both = ("KERNEL_VOLUMES", "KERNEL_VOLUME_MOUNTS")
    texts = {each: env.pop(each) for each in both if each in env}
    try:
        joined, left = join_volumes(*(texts.get(each, "") for each in both))
        passes = bool(left) and is_supported(*(texts.get(each, "") for each in both))
    except ValueError as problem:
        joined, left, passes = [], [str(problem)], False
    if draft.backend != "kubernetes":
        joined, left, passes = [], ["the kernel is in no pod"], False
    for each in texts:
        draft.say(f"env {each}", *_describe_volumes(draft, joined, left, passes))
    if passes:
        draft.options |= {each.removeprefix("KERNEL_").lower(): texts[each] for each in both}
    elif joined:
        draft.options["volumes"] = ",".join(joined)
        for each in joined:
            draft.allow("allowed_volumes", each.partition(":")[0])


def _describe_volumes(
    draft: Draft, joined: list[str], left: list[str], passes: bool
) -> tuple[Outcome, str, str | None]:
    """Return the outcome, the text and the default of the line about volumes."""
    setting = f"c.{draft.section}.allowed_volumes"
    shown = show("volumes", ",".join(joined)) if joined else "no volumes"
    if passes:
        return (
            "decision",
            f"options.volumes and volume_mounts: {setting} must allow each volume",
            "as they are",
        )
    if left:
        reason = "; ".join(sorted(set(left)))
        return "decision", f"roost mounts volume claims, and {reason}: use the pod template", shown
    if not joined:
        return "dropped", "it is empty", None
    return "translated", f"options.volumes = {shown}, whose claims {setting} names", None


def _set_id(draft: Draft, env: dict[str, str], name: str) -> None:
    value, option = env.pop(name).strip(), name.removeprefix("KERNEL_").lower()
    if draft.backend != "kubernetes":
        draft.say(f"env {name}", "dropped", "the kernel is in no pod")
    elif not value.isdecimal() or not 0 < int(value) < 1 << 31:
        draft.say(
            f"env {name}", "decision", f"it is no number above 0: set options.{option}", "the image's own"
        )
    else:
        draft.options[option] = int(value)
        text = (
            f"options.{option} = {int(value)}: may kernels run as it (c.{draft.section}.allowed_{option}s)?"
        )
        draft.say(f"env {name}", "decision", text, str(int(value)))


def _set_yarn_option(option: str) -> Callable[[Draft, dict[str, str], str], None]:
    def handle(draft: Draft, env: dict[str, str], name: str) -> None:
        value = env.pop(name)
        if draft.backend != "yarn" or not value.strip() or "$" in value:
            draft.say(f"env {name}", "dropped", f"options.{option} is of YARN, and takes no variable")
        else:
            draft.options[option] = value.strip()
            draft.say(f"env {name}", "translated", f"options.{option} = {show(name, value)}")

    return handle


def _set_host(draft: Draft, env: dict[str, str], name: str) -> None:
    host = env.pop(name).strip()
    if draft.backend == "local" or not host or "$" in host:
        draft.say(f"env {name}", "dropped", "it names this machine, nothing, or a variable")
        return
    draft.config["labels"] = {**draft.config.get("labels", {}), "node": host}
    draft.say(f"env {name}", "translated", f"labels: node = {show('node', host)}, its name in `roost nodes`")


def _set_mode(draft: Draft, env: dict[str, str], name: str) -> None:
    set_mode(draft, env.pop(name).strip(), f"env {name}")


def _set_class(draft: Draft, env: dict[str, str], name: str) -> None:
    set_class(draft, env.pop(name).strip(), f"env {name}")


_AS_OPTIONS = {
    "KERNEL_IMAGE": "image_name",
    "KERNEL_EXECUTOR_IMAGE": "executor_image_name",
    "KERNEL_LAUNCH_TIMEOUT": "launch_timeout",
}
"""The variables that mean the same as an option of a stanza, and override it."""
_HANDLERS: Mapping[str, Callable[[Draft, dict[str, str], str], None]] = {
    "KERNEL_CPUS": _set_cpus,
    "KERNEL_CPUS_LIMIT": _limit_cpus,
    "KERNEL_MEMORY": _set_memory,
    "KERNEL_MEMORY_LIMIT": _set_memory,
    "KERNEL_GPUS": _set_gpus,
    "KERNEL_GPUS_LIMIT": _set_gpus,
    "KERNEL_NAMESPACE": _set_namespace,
    "KERNEL_SERVICE_ACCOUNT_NAME": _set_service_account,
    "KERNEL_VOLUMES": _set_volumes,
    "KERNEL_VOLUME_MOUNTS": _set_volumes,
    "KERNEL_UID": _set_id,
    "KERNEL_GID": _set_id,
    "KERNEL_QUEUE": _set_yarn_option("queue"),
    "KERNEL_NODE_LABEL": _set_yarn_option("label"),
    "KERNEL_REMOTE_HOST": _set_host,
    "KERNEL_SPARK_CONTEXT_INIT_MODE": _set_mode,
    "KERNEL_CLASS_NAME": _set_class,
}
_KEPT = ("KERNEL_WORKING_DIR", "KERNEL_GATEWAY", "KERNEL_EXTRA_SPARK_OPTS")
"""Variables of the table that mean the same in roost, reach the kernel only, or are Spark's."""
