"""The methods of a study, and the settings that a search tries for each of them."""

import math
from collections.abc import Collection
from typing import Any

from shadowpeft.checked_fields import nearest
from shadowpeft.compare.cell import Setting
from shadowpeft.errors import ConfigError

METHODS = (
    "base", "lora", "dora", "peft-shadow", "shadow", "shadow-paper", "shadow-explicit", "shadow-frozen",
    "full",
)  # fmt: skip
# These need another model as their shadow.
EXPLICIT = ("shadow-explicit", "shadow-frozen")
OURS = ("shadow", "shadow-paper", *EXPLICIT)
SHADOWS = ("peft-shadow", *OURS)
# What a search tries, the likeliest first. In results/quality/head_rate LoRA and the random shadow did best
# at the first of these rates, with this one for a classifier's new heads.
_HEAD = 3e-3
_ADAPTER = tuple(Setting(rate) for rate in (3e-4, 5e-4, 1e-3, 2e-4, 2e-3, 1e-4, 4e-3, 7e-3))
_PUBLISHED = tuple(
    Setting(rate, alpha)
    for rate, alpha in (
        (1e-3, 0.1),
        (1e-3, 0.3),
        (3e-3, 0.3),
        (5e-4, 0.1),
        (1e-3, 1.0),
        (3e-3, 0.1),
        (3e-3, 1.0),
        (3e-4, 0.3),
    )
)
_RANDOM = tuple(
    Setting(rate, alpha)
    for rate, alpha in (
        (1e-3, 0.6),
        (2e-3, 0.6),
        (5e-4, 0.6),
        (1e-3, 1.0),
        (2e-3, 0.3),
        (3e-3, 0.6),
        (2e-3, 1.0),
        (1e-3, 0.1),
    )
)
# What did best in results/quality/large_base comes first. The backbone of a pretrained shadow is tried from a
# two-hundredth of the rate to the whole.
_PRETRAINED = tuple(
    Setting(rate, 0.3, backbone)
    for rate, backbone in (
        (1e-3, 1e-5),
        (2e-3, 3e-4),
        (1e-3, 1e-4),
        (2e-3, 1e-5),
        (2e-3, 2e-3),
        (1e-3, 3e-5),
        (5e-4, 1e-5),
        (3e-3, 1e-4),
    )
)
_FROZEN = tuple(
    Setting(rate, alpha)
    for rate, alpha in (
        (1e-3, 0.3),
        (2e-3, 0.3),
        (5e-4, 0.3),
        (1e-3, 0.6),
        (2e-3, 0.6),
        (1e-3, 1.0),
        (3e-3, 0.3),
        (3e-4, 0.3),
    )
)
SEARCH: dict[str, tuple[Setting, ...]] = {
    "base": tuple(Setting(rate) for rate in (1e-2, 3e-3, 3e-2, 1e-3, 1e-1, 3e-4, 3e-1, 1e-4)),
    "lora": _ADAPTER,
    "dora": _ADAPTER,
    "full": tuple(Setting(rate) for rate in (1e-4, 3e-5, 3e-4, 1e-5, 6e-5, 2e-4, 5e-4, 2e-5)),
    "peft-shadow": _PUBLISHED,
    "shadow-paper": _PUBLISHED,
    "shadow": _RANDOM,
    "shadow-explicit": _PRETRAINED,
    "shadow-frozen": _FROZEN,
}


def built_in(method: str, has_new_head: bool) -> list[Setting]:
    """List what a search tries by itself, the likeliest first.

    Args:
        method: the method.
        has_new_head: whether the task is classified by new heads, which get a rate of their own. Of the bare
            base nothing else is trained.
    """
    if not has_new_head or method == "base":
        return list(SEARCH[method])
    return [setting._replace(head_learning_rate=_HEAD) for setting in SEARCH[method]]


def refuse_unknown(name: str, known: Collection[str], what: str) -> None:
    """Refuse a name that is not known, listing those that are.

    Raises:
        ConfigError: it is not among them.
    """
    if name not in known:
        raise ConfigError(
            f"there is no {what} {name!r}{nearest(name, known)}; the {what}s are: {', '.join(known)}"
        )


def check_trials(method: str, settings: list[dict[str, float]] | None, trials: int) -> None:
    """Refuse a search that tries more settings of one method than of another, or a malformed setting.

    Args:
        method: the method.
        settings: the study's own settings for it; `None` for the built-in ones.
        trials: how many settings every method tries.

    Raises:
        ConfigError: says what the search may hold.
    """
    if settings is None:
        if trials > len(SEARCH[method]):
            most = len(SEARCH[method])
            raise ConfigError(
                f"trials must be {most} or less with the built-in settings, got {trials}; "
                f"list {trials} for {method} under search"
            )
        return
    if not isinstance(settings, list) or len(settings) != trials:
        got = f"{len(settings)} settings" if isinstance(settings, list) else repr(settings)
        raise ConfigError(
            f"every method gets the same number of trials: search.{method} must list {trials} settings, "
            f"got {got}; change it or trials"
        )
    for setting in settings:
        _check_setting(method, setting)
        if settings.count(setting) > 1:
            raise ConfigError(f"search.{method} lists {setting} twice; every trial must differ")


def _check_setting(method: str, setting: Any) -> None:
    known = ["learning_rate"]
    if method != "base":
        known.append("head_learning_rate")
    if method in SHADOWS:
        known.append("alpha")
    if method in OURS:
        known.append("backbone_learning_rate")
    if not isinstance(setting, dict) or "learning_rate" not in setting:
        raise ConfigError(
            f"search.{method} must list settings such as {{learning_rate: 0.001}}, got {setting!r}"
        )
    for name, value in setting.items():
        if name == "head_learning_rate" and name not in known:
            raise ConfigError(
                f"search.{method}: of the bare base the head alone is trained, at learning_rate; set that, "
                f"and leave {name} out"
            )
        if name == "backbone_learning_rate" and name not in known:
            raise ConfigError(
                f"search.{method}: {name} can be searched for {', '.join(OURS)} alone; leave it out"
            )
        if name not in known:
            raise ConfigError(
                f"search.{method}: there is nothing to search called {name!r}{nearest(name, known)}; "
                f"it may hold {', '.join(known)}"
            )
        if not _is_number(value) or not 0 < value < math.inf:
            raise ConfigError(f"search.{method}: {name} must be a number above 0, got {value!r}")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
