"""The optimiser: the reference's AdamW, its parameter groups, clipping and schedule.

Parameters and gradients are flat dicts from path ("decoder.norm.scale") to array. What sets it
apart from `optax.adamw` is what multitask training makes of it: a task reaches only some of the
parameters, every parameter counts its own updates, and

- "adam_w" leaves a parameter alone until a task has reached it once; from then on it takes part
  in every update, with a zero gradient where the task at hand does not reach it (its moments
  decay, momentum still moves it, weight decay applies);
- "adam_w_skip_zero_grad" leaves a tensor out of every update in which its gradient is all zeros.
"""

import dataclasses
import math
import re
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int

from unit_jax.settings import OptimizerSettings

Params = dict[str, Array]

_FUSED = re.compile(r"^(.*)\.(?:query|key|value)\.(kernel|bias)$")


class OptimizerState(NamedTuple):
    """Everything that a checkpoint of the optimiser holds; frozen parameters have no entries.

    Attributes:
      step: updates done.
      counts: updates each parameter took part in.
      mu: first moments, in the parameter's dtype.
      nu: second moments, likewise.
    """

    step: Int[Array, ""]
    counts: dict[str, Int[Array, ""]]
    mu: Params
    nu: Params


class UpdateInfo(NamedTuple):
    """What an update tells the log.

    Attributes:
      grad_norm: L2 norm of all gradients before clipping.
      learning_rate: the rate of everything but the backbone.
      bad_step: nothing was updated.
    """

    grad_norm: Float[Array, ""]
    learning_rate: Float[Array, ""]
    bad_step: Bool[Array, ""]


def group_of(path: str) -> str:
    """The learning-rate group of a parameter: "backbone" or "rest" (`input_proj` is rest)."""
    return "backbone" if path.startswith("backbone.") else "rest"


def reference_tensor(path: str) -> str:
    """The tensor of the reference that a parameter is part of.

    DETR's attention holds query, key and value projections in one tensor, `in_proj`; ours are
    three. BERT's are three in both, and everything else is one to one.
    """
    if path.startswith("text_encoder."):
        return path
    return _FUSED.sub(r"\1.in_proj.\2", path)


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """AdamW as transformers' (not torch's) class of that name has it.

    An update with number t = count of the parameter, rate lr and gradient g, clipped:
    m = b1 m + (1-b1) g; v = b2 v + (1-b2) g²; p -= lr sqrt(1-b2^t)/(1-b1^t) m / (sqrt(v) + eps);
    then p -= lr * weight_decay * p with the new p. Every trainable parameter decays, biases,
    norms and embeddings too.

    Attributes:
      settings: rates, moments, clipping, warm-up, frozen path prefixes.
      total_steps: updates of the whole run; the cosine reaches zero there.
    """

    settings: OptimizerSettings
    total_steps: int

    def init(self, params: Mapping[str, Array]) -> OptimizerState:
        """The state before the first update."""
        trainable = {path: p for path, p in params.items() if not self.is_frozen(path)}
        return OptimizerState(
            step=jnp.zeros((), jnp.int32),
            counts={path: jnp.zeros((), jnp.int32) for path in trainable},
            mu={path: jnp.zeros_like(p) for path, p in trainable.items()},
            nu={path: jnp.zeros_like(p) for path, p in trainable.items()},
        )

    def is_frozen(self, path: str) -> bool:
        """Whether `settings.frozen` names the parameter or a module that it lies in."""
        return any(path == prefix or path.startswith(prefix + ".") for prefix in self._frozen)

    @property
    def _frozen(self) -> tuple[str, ...]:
        return tuple(prefix.rstrip(".") for prefix in self.settings.frozen)

    def learning_rate_factor(self, step: int | Int[Array, ""]) -> float | Float[Array, ""]:
        """Linear warm-up from 0, then half a cosine to 0; it multiplies both groups' rates.

        Args:
          step: updates done before this one, so the first update has factor 0. A Python int gives
            a float64 number, a JAX integer a float32 array (float64 with x64).
        """
        xp: Any = jnp if isinstance(step, jax.Array) else np
        k = step.astype(float) if isinstance(step, jax.Array) else float(step)
        warmup = self.settings.warmup_steps
        progress = (k - warmup) / max(1, self.total_steps - warmup)
        cosine = xp.maximum(0.0, 0.5 * (1 + xp.cos(math.pi * progress)))
        return xp.where(k < warmup, k / max(1, warmup), cosine)[()]

    def learning_rate(self, path: str, step: int | Int[Array, ""]) -> float | Float[Array, ""]:
        """Rate of a parameter in the update after `step` updates; types as the factor's."""
        settings = self.settings
        base = {"backbone": settings.backbone_learning_rate, "rest": settings.learning_rate}
        return base[group_of(path)] * self.learning_rate_factor(step)

    def update(
        self,
        grads: Mapping[str, Array],
        state: OptimizerState,
        params: Mapping[str, Array],
        used: Collection[str] | Mapping[str, bool | Bool[Array, ""]],
        usable: bool | Bool[Array, ""] = True,
    ) -> tuple[Params, OptimizerState, UpdateInfo]:
        """One update; a pure function that can be jitted (with `used` static).

        Where `usable` is False or the gradients' norm is not finite, nothing changes but the step's
        number.

        Args:
          grads: gradient per path, averaged over devices; paths that are frozen or not in `used`
            may be missing and are ignored.
          state: from `init` or the update before.
          params: all parameters; frozen ones come back as they are.
          used: the paths that the task at hand reaches, whether or not their gradient is zero.
            A mapping may give a traced truth value for a path (with a gradient of zeros where it
            is False): then one compiled program serves tasks that reach different parameters.

        Raises:
          ValueError: the state does not belong to these parameters, or a gradient is missing.
        """
        self._check(grads, state, params, used)
        reached = {path: grads[path] for path in state.mu if path in used}
        norm = optax.tree.norm(reached)
        good = jnp.isfinite(norm) & usable
        clip = jnp.minimum(1, self.settings.clip_norm / (norm + 1e-6))
        takes_part = self._takes_part(reached, state, used)
        rates = {
            group: self.learning_rate(path, state.step)
            for path in state.mu
            for group in [group_of(path)]
        }

        new_params, counts, mu, nu = dict(params), {}, {}, {}
        for path in state.mu:
            old = (params[path], state.mu[path], state.nu[path], state.counts[path])
            if takes_part[path] is False:
                new = old
            else:
                new = self._adam_w(
                    *old, reached.get(path), clip, rates[group_of(path)], good & takes_part[path]
                )
            new_params[path], mu[path], nu[path], counts[path] = new
        rate = jnp.asarray(self.settings.learning_rate * self.learning_rate_factor(state.step))
        state = OptimizerState(state.step + 1, counts, mu, nu)
        return new_params, state, UpdateInfo(norm, rate, ~good)

    def _takes_part(
        self, reached: Mapping[str, Array], state: OptimizerState, used
    ) -> dict[str, bool | Array]:
        """Which parameters this update touches; a plain bool where that is known beforehand."""
        if self.settings.name == "adam_w":
            flags = used if isinstance(used, Mapping) else dict.fromkeys(used, True)
            return {
                path: flags.get(path, False) is True
                or (flags.get(path, False) | (state.counts[path] > 0))
                for path in state.mu
            }
        nonzero: dict[str, Array] = {}
        for path, grad in reached.items():
            tensor = reference_tensor(path)
            nonzero[tensor] = jnp.any(grad != 0) | nonzero.get(tensor, False)
        return {path: nonzero.get(reference_tensor(path), False) for path in state.mu}

    def _adam_w(self, param, mu, nu, count, grad: Array | None, clip, rate, active):
        """The new (param, mu, nu, count); `grad` None is a zero gradient.

        Where `active` is False nothing changes, because every factor is neutral: choosing between
        new and old arrays afterwards costs several times more.
        """

        def unless_idle(value, neutral):
            return jnp.where(active, value, neutral)

        settings = self.settings
        b1, b2 = settings.b1, settings.b2
        new_count = count + 1
        remaining1, remaining2 = _one_minus_power(b1, new_count), _one_minus_power(b2, new_count)
        rate = unless_idle(rate, 0)
        step = rate * jnp.sqrt(remaining2) / remaining1
        mu, nu = mu * unless_idle(b1, 1), nu * unless_idle(b2, 1)
        if grad is not None:
            grad = unless_idle((grad * clip).astype(grad.dtype), 0)
            mu, nu = mu + (1 - b1) * grad, nu + (1 - b2) * grad * grad
        new = param - step * mu / (jnp.sqrt(nu) + settings.eps)
        new = new - rate * settings.weight_decay * new
        return (
            new.astype(param.dtype),
            mu.astype(param.dtype),
            nu.astype(param.dtype),
            unless_idle(new_count, count),
        )

    def _check(self, grads, state: OptimizerState, params, used: Collection[str]) -> None:
        expected = {path for path in params if not self.is_frozen(path)}
        if expected != set(state.mu):
            different = sorted(expected ^ set(state.mu))
            raise ValueError(
                f"the optimiser state does not belong to these parameters ({len(different)} paths "
                f"differ, e.g. {different[0]}); was `optimizer.frozen` or the model changed?"
            )
        missing = sorted(path for path in expected if path in used and path not in grads)
        if missing:
            raise ValueError(f"no gradient for {len(missing)} used parameters, e.g. {missing[0]}")


def _one_minus_power(base: float, exponent: Int[Array, ""]) -> Float[Array, ""]:
    """1 - base**exponent; float32 would lose half its digits in the subtraction."""
    return -jnp.expm1(exponent * (math.log(base) if base else -math.inf))
