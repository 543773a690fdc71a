"""The settings of `shadowpeft serve`. Imports no torch, so that `--help` comes at once."""

from dataclasses import dataclass
from typing import Literal

from shadowpeft import checked_fields
from shadowpeft.checked_fields import within
from shadowpeft.errors import ConfigError

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
# Settings that nothing reads without an edge and a cloud.
_OF_ROLES = ("on_cloud_failure", "hand_over", "hold", "upstream_timeout")


@dataclass(frozen=True)
class Serve:
    """What is served, by whom, and how much of it at once."""

    model: str | None = None
    """Folder or hub id of the base, or of an exported model."""
    adapter: list[str] | str | None = None
    """Folder or hub id of the adapter; its models are attached, detached and base. Several have names, as
    in --adapter legal=run/legal; each is served by its name, and its shadow alone as legal-detached."""
    edge: str | None = None
    """What answers first: the name of a model above, the address of a server that speaks OpenAI's protocol
    (http://127.0.0.1:8080/v1, with #NAME behind it for one of its models), or the folder of a model."""
    cloud: str | None = None
    """What answers where the edge is not sure enough; given as the edge is."""
    policy: str | None = None
    """The file routing.json of shadowpeft calibrate, which says when the edge is sure enough."""
    on_cloud_failure: Literal["answer", "503"] = "answer"
    """What is done with a deferred request while the cloud is away: give the edge's answer, with a note that
    says so, or refuse."""
    hand_over: bool = False
    """Let the cloud continue the edge's text from its least sure token on, in place of a new answer."""
    hold: int = within(256, least=1)
    """Most tokens that a stream holds back until it is decided who answers."""
    draft: str | None = None
    """shadow to let each attached model's shadow propose tokens; one request at a time then."""
    draft_tokens: int | str | None = None
    """How many tokens the base reads in a pass with drafts; auto, the default, for as many as pay."""
    host: str = "127.0.0.1"
    """Address to listen at; only this machine can reach the default."""
    port: int = within(8000, least=0, most=65535)
    """Port to listen at; 0 for a free one."""
    batch: int = within(32, least=1)
    """Most texts that a model writes at once."""
    max_tokens: int = within(4096, least=1)
    """Most tokens of an answer."""
    concurrency: int = within(64, least=1)
    """Requests that are worked on at once."""
    queue: int = within(256, least=0)
    """Requests that may wait beside them; more are told to try again (429)."""
    body_kb: int = within(1000, least=1)
    """Largest body of a request, in 1,000 bytes."""
    timeout: float = within(300.0, above=0)
    """Seconds that a request may take."""
    upstream_timeout: float = within(60.0, above=0)
    """Seconds that a server elsewhere may be silent."""
    grace: float = within(30.0, least=0)
    """Seconds that running requests get to end when the server is told to stop."""
    api_keys: str | None = None
    """File of keys, one a line; callers must show one. The variable SHADOWPEFT_API_KEYS may hold them, too,
    with commas between. Keys to show to the servers elsewhere are in SHADOWPEFT_EDGE_KEY and
    SHADOWPEFT_CLOUD_KEY."""
    log_requests: bool = False
    """Print a line for each request: path, model, status and milliseconds, and no word of its text."""
    dtype: Dtype = "auto"
    """Type of the weights; auto for the one they are stored in."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1 or mps."""

    def __post_init__(self) -> None:
        checked_fields.check(self)
        self._check_models()
        self._check_roles()

    def adapters(self) -> dict[str | None, str]:
        """Return the folders of the adapters by name; `None` for the one without a name."""
        given = [self.adapter] if isinstance(self.adapter, str) else self.adapter or []
        found: dict[str | None, str] = {}
        for word in given:
            name, equals, folder = word.partition("=")
            key, folder = (name, folder) if equals else (None, word)
            if key in found or (found and None in (key, *found)):
                raise ConfigError(
                    "several adapters need names of their own, as in --adapter legal=run/legal; got "
                    f"{', '.join(given)}"
                )
            found[key] = folder
        return found

    def _check_models(self) -> None:
        if self.model is None and self.adapters():
            raise ConfigError("an adapter needs its base; give it as --model")
        if self.model is None and self.edge is None:
            raise ConfigError("there is nothing to serve; give --model, or --edge and --cloud with --policy")
        if self.draft is not None and not self.adapters():
            raise ConfigError(
                "the shadow drafts for the base that it stands beside: give --draft with --adapter"
            )
        taken = {"base", "attached", "detached", "routed", "edge", "cloud", ""}
        for name in self.adapters():
            if name in taken:
                raise ConfigError(
                    f"an adapter may have any name but {', '.join(sorted(taken - {''}))}, got {name!r}"
                )

    def _check_roles(self) -> None:
        roles = {"--edge": self.edge, "--cloud": self.cloud, "--policy": self.policy}
        missing = [name for name, value in roles.items() if value is None]
        if 0 < len(missing) < len(roles):
            raise ConfigError(
                f"edge, cloud and policy belong together: give {' and '.join(missing)}, too, or none of them"
            )
        if self.edge is None and (idle := checked_fields.changed(self, _OF_ROLES)):
            raise ConfigError(f"{idle[0]} is about edge and cloud: give these, or leave {idle[0]} out")
        if self.edge is not None and self.edge == self.cloud:
            raise ConfigError(f"edge and cloud are both {self.edge}; there would be nothing to decide")
        shadows = {"detached"} | {f"{name}-detached" for name in self.adapters()}
        if self.cloud in shadows:
            raise ConfigError(
                f"the edge is {self.edge} and the cloud {self.cloud}, a shadow alone; the small model "
                "answers first: swap the two"
            )


def is_address(spec: str) -> bool:
    """Return whether a role is given by the address of a server."""
    return spec.startswith(("http://", "https://"))
