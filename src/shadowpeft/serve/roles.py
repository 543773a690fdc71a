"""Edge and cloud as the settings name them: models of this process, or servers elsewhere."""

import os
import warnings
from collections.abc import Iterable
from typing import Any

from shadowpeft.errors import ConfigError, DataError, UserError
from shadowpeft.route.policy import Policy
from shadowpeft.route.scores import kind_of
from shadowpeft.serve.app import Served
from shadowpeft.serve.backend import Backend
from shadowpeft.serve.metrics import Metrics
from shadowpeft.serve.routed import Role, Routed, Rules, scores_of
from shadowpeft.serve.settings import Serve, is_address
from shadowpeft.serve.upstream import Upstream


class Roles:
    """An edge, a cloud and the policy between them.

    Args:
        settings: name the roles.
        local: the models of this process by their names.
        metrics: counts routes and failures.

    Raises:
        UserError: a role or the policy cannot be loaded, or the policy was made for another edge.
    """

    def __init__(self, settings: Serve, local: dict[str, Served], metrics: Metrics) -> None:
        assert settings.edge is not None
        assert settings.cloud is not None
        assert settings.policy is not None
        self._settings, self._local, self._metrics = settings, local, metrics
        self.policy = Policy.load(settings.policy)
        if kind_of(self.policy.score).one_entry:
            raise ConfigError(
                f"the policy's score {self.policy.score} is for answers chosen among labels, and here the "
                "edge writes its answers: calibrate with a score of tokens, such as min_logprob"
            )
        self._refuse_other_edge(settings.edge)
        self._edge, self._cloud = self._role("edge", settings.edge), self._role("cloud", settings.cloud)
        rules = Rules(settings.on_cloud_failure, settings.hand_over, settings.hold)
        self._routed = Routed(self._edge, self._cloud, self.policy, rules, metrics)

    def backends(self) -> list[Backend]:
        """Return the backends that are not among the local ones: what must be started and closed."""
        known = [served.backend for served in self._local.values()]
        return [role.backend for role in (self._edge, self._cloud) if role.backend not in known]

    def served(self) -> dict[str, Served]:
        """Return the models by the names that callers give."""
        return {
            "routed": Served(self._routed, "routed", has_roles=True),
            "edge": Served(self._edge.backend, self._edge.name),
            "cloud": Served(self._cloud.backend, self._cloud.name, leaves=True),
        }

    async def check(self) -> None:
        """Ask the servers elsewhere whether they are there, and the edge for log-probabilities.

        Raises:
            UserError: the edge cannot be reached, or tells no log-probabilities.
        """
        for role in (self._edge, self._cloud):
            backend = role.backend
            if not isinstance(backend, Upstream):
                continue
            try:
                await backend.start()
            except UserError as error:
                if role is self._edge:
                    raise
                then = "are answered by the edge" if self._answers_alone else "are refused"
                warnings.warn(f"{error}; until it is back, deferred requests {then}", stacklevel=2)
                continue
            if role is self._edge:
                await self._check_scores(backend)

    async def _check_scores(self, edge: Upstream) -> None:
        """Refuse an edge that does not tell what the policy's score reads."""
        tokens = await edge.probe()
        if not tokens:
            raise UserError(
                f"the edge at {edge.address} gives no log-probabilities of its tokens, by which the policy "
                "decides; turn them on there, or use another server"
            )
        try:
            self.policy.decide(scores_of(tokens), "")
        except DataError as error:
            raise UserError(f"the edge at {edge.address} cannot be judged by this policy: {error}") from error

    def about(self) -> dict[str, Any]:
        """Return what the page shows: the roles, the policy, and what came of it."""
        policy = self.policy
        counts = policy.counts
        return {
            "edge": self._settings.edge,
            "cloud": self._settings.cloud,
            "cloud_is_away": not self.is_well(),
            "policy": {
                "score": policy.score,
                "threshold": policy.threshold,
                "knots": [list(knot) for knot in policy.knots],
                "model": policy.model,
                "adapter": policy.adapter,
                "held": counts.held,
                "kept": counts.kept,
                "errors": counts.errors,
            },
            "routes": self._counted(),
        }

    def is_well(self) -> bool:
        """Return whether both roles answered of late."""
        backends = [role.backend for role in (self._edge, self._cloud)]
        return all(backend.is_well for backend in backends if isinstance(backend, Upstream))

    @property
    def _answers_alone(self) -> bool:
        return self._settings.on_cloud_failure == "answer"

    def _counted(self) -> list[dict[str, Any]]:
        (family,) = self._metrics.routes.collect()
        return [
            {**sample.labels, "count": int(sample.value)}
            for sample in family.samples
            if sample.name.endswith("_total")
        ]

    def _role(self, role: str, spec: str) -> Role:
        if is_address(spec):
            key = os.environ.get(f"SHADOWPEFT_{role.upper()}_KEY")
            return Role(Upstream(role, spec, key, self._settings.upstream_timeout, self._metrics), role)
        if spec in self._local:
            served = self._local[spec]
            return Role(served.backend, served.name)
        return Role(self._of_folder(role, spec, self._local), role)

    def _of_folder(self, role: str, spec: str, local: Iterable[str]) -> Backend:
        from shadowpeft.serve.loading import model_of_folder
        from shadowpeft.serve.local import LocalBackend

        try:
            model = model_of_folder(self._settings, spec)
        except UserError as error:
            names = f"; the models above are: {', '.join(local)}" if local else ""
            raise ConfigError(
                f"--{role} must be a model above, an address or the folder of a model{names}: {error}"
            ) from error
        return LocalBackend({role: model}, self._settings.batch, self._settings.max_tokens)

    def _refuse_other_edge(self, edge: str) -> None:
        """Refuse an edge that the policy was not made for, or say that this cannot be known."""
        adapter_hash = adapter_hash_of(self._settings, edge)
        self.policy.refuse_other(adapter_hash)
        if self.policy.adapter_hash and adapter_hash is None and not is_address(edge):
            self._refuse_other_model(edge)
        calibrated_on = self.policy.endpoint
        if is_address(edge) == (calibrated_on is not None):
            return
        warnings.warn(
            f"the policy was calibrated on {calibrated_on or 'a model in this library'}, and the edge is "
            f"{edge}: servers differ in the tokens that they tell of, so its promise may not hold; calibrate "
            "on what answers here (shadowpeft calibrate)",
            stacklevel=2,
        )

    def _refuse_other_model(self, edge: str) -> None:
        """Refuse a model here that is not the policy's shadow, and warn of a folder: it may hold anything."""
        if edge in self._local:
            raise ConfigError(
                f"the policy was calibrated for the shadow of the adapter {self.policy.adapter}, and the "
                f"edge {edge} is another model; name the detached one"
            )
        warnings.warn(
            f"the policy was calibrated for the adapter {self.policy.adapter}, and nothing in {edge} tells "
            "whether it was exported from it: if not, the promise does not hold",
            stacklevel=3,
        )


def adapter_hash_of(settings: Serve, spec: str) -> str | None:
    """Return the hash of the adapter whose shadow plays a role; `None` where the role is no shadow's."""
    for name, source in settings.adapters().items():
        if spec == ("detached" if name is None else f"{name}-detached"):
            # Not before it is needed: it imports torch.
            from shadowpeft.evaluation.roles import identity_of

            return identity_of(settings.model or "", source).adapter_hash
    return None
