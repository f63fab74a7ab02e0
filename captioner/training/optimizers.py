"""How weights follow gradients: optimizers, schedules, clipping, averaging.

In: a phase's settings. Out: a `TrainOptimizer`, which applies one step to the decoder and, if it is trained,
to the encoder.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

from captioner.config import PhaseConfig
from captioner.errors import ConfigError, load_object, unknown_name

EMA_WARMUP_STEPS = 64  # steps during which averages follow every step
EMA_EVERY = 4  # steps, afterwards: a pass over all weights less in three of four steps


class FusedAdam(keras.optimizers.Adam):  # type: ignore[misc]
    """Keras's Adam through TensorFlow's one-pass kernel: each weight and moment is read and written once."""

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        """Updates one variable by the formula of the base class."""
        variable = variable.value if isinstance(variable, keras.Variable) else variable
        index = self._get_variable_index(variable)
        step = tf.cast(self.iterations + 1, tf.float32)
        tf.raw_ops.ResourceApplyAdam(
            var=variable.handle,
            m=self._momentums[index].value.handle,
            v=self._velocities[index].value.handle,
            beta1_power=tf.pow(self.beta_1, step),
            beta2_power=tf.pow(self.beta_2, step),
            lr=tf.cast(learning_rate, tf.float32),
            beta1=self.beta_1,
            beta2=self.beta_2,
            epsilon=self.epsilon,
            grad=tf.convert_to_tensor(gradient),
        )


OPTIMIZERS: dict[str, Callable[..., Any]] = {
    "sgd": lambda rate, decay: keras.optimizers.SGD(rate),
    "momentum": lambda rate, decay: keras.optimizers.SGD(rate, momentum=0.9),
    "nesterov": lambda rate, decay: keras.optimizers.SGD(rate, momentum=0.9, nesterov=True),
    "adagrad": lambda rate, decay: keras.optimizers.Adagrad(rate),
    "adadelta": lambda rate, decay: keras.optimizers.Adadelta(rate),
    "rmsprop": lambda rate, decay: keras.optimizers.RMSprop(rate),
    "adam": lambda rate, decay: FusedAdam(rate),
    "adamw": lambda rate, decay: keras.optimizers.AdamW(rate, weight_decay=decay),
    "adamax": lambda rate, decay: keras.optimizers.Adamax(rate),
    "nadam": lambda rate, decay: keras.optimizers.Nadam(rate),
    "ftrl": lambda rate, decay: keras.optimizers.Ftrl(rate),
    "lion": lambda rate, decay: keras.optimizers.Lion(rate, weight_decay=decay),
    "adafactor": lambda rate, decay: keras.optimizers.Adafactor(rate),
}


def load_optimizer(phase: PhaseConfig, rate: Any) -> Any:
    """The phase's Keras optimizer; one's own as `"package.module:name"`, called with the learning rate.

    Raises:
        ConfigError: unknown name, or not a Keras optimizer.
    """
    if ":" in phase.optimizer:
        try:
            optimizer = load_object(phase.optimizer, "optimizer")(rate)
        except TypeError as error:  # no function, or one of something else
            raise ConfigError(f'optimizer "{phase.optimizer}": takes no learning rate ({error})') from error
        if not isinstance(optimizer, keras.optimizers.Optimizer):
            raise ConfigError(
                f'optimizer "{phase.optimizer}": expected a keras.optimizers.Optimizer, got {optimizer!r}'
            )
        return optimizer
    if phase.optimizer not in OPTIMIZERS:
        raise ConfigError(
            unknown_name("optimizer", phase.optimizer, OPTIMIZERS) + '; or "package.module:name"'
        )
    return OPTIMIZERS[phase.optimizer](rate, phase.weight_decay)


class PhaseSchedule(keras.optimizers.schedules.LearningRateSchedule):
    """Learning rate over a phase: a straight warm-up, then the phase's curve down to its final share.

    Args:
        phase: schedule, warm-up and final share.
        rate: the rate after the warm-up.
        steps: of the whole phase.
    """

    def __init__(self, phase: PhaseConfig, rate: float, steps: int) -> None:
        super().__init__()
        self.kind, self.final, self.rate, self.steps = (
            phase.schedule,
            phase.final_lr_fraction,
            rate,
            max(steps, 1),
        )
        self.warmup = min(phase.warmup_steps, self.steps // 2)

    def __call__(self, step: Any) -> Any:
        step = tf.cast(step, tf.float32)
        done = tf.clip_by_value((step - self.warmup) / max(self.steps - self.warmup, 1), 0.0, 1.0)
        final = max(self.final, 1e-8)
        share = {
            "constant": lambda: tf.ones_like(done),
            "linear": lambda: 1 + (final - 1) * done,
            "cosine": lambda: final + (1 - final) * 0.5 * (1 + tf.cos(3.14159265 * done)),
            "exponential": lambda: final**done,
        }[self.kind]()
        return self.rate * share * tf.minimum(1.0, (step + 1) / max(self.warmup, 1))

    def get_config(self) -> dict[str, Any]:
        """As Keras wants it; nothing here is ever serialized."""
        return {"rate": self.rate, "steps": self.steps}


class TrainOptimizer(tf.Module):
    """The optimizer of decoder and encoder together, with clipping by global norm and averaged weights (EMA).

    Args:
        phase: its settings.
        steps: of the whole phase, for the schedule.
        decoder: its trainable variables.
        encoder: the encoder's trainable variables, or none.
    """

    def __init__(
        self, phase: PhaseConfig, steps: int, decoder: Sequence[Any], encoder: Sequence[Any] = ()
    ) -> None:
        super().__init__(name="updater")
        self.phase, self.groups = phase, [list(decoder), list(encoder)]
        rates = (phase.learning_rate, phase.encoder_learning_rate)
        self.schedules = [PhaseSchedule(phase, rate, steps) for rate in rates]
        self.optimizers = [load_optimizer(phase, schedule) for schedule in self.schedules]
        for optimizer, variables in zip(self.optimizers, self.groups, strict=True):
            if variables:
                optimizer.build(variables)
        self.averages = (
            [tf.Variable(v, trainable=False) for v in self.variables_trained] if phase.ema_decay else []
        )

    @property
    def variables_trained(self) -> list[Any]:
        """Every variable this updater changes, decoder first."""
        return self.groups[0] + self.groups[1]

    def apply(self, gradients: Sequence[Any]) -> Any:
        """Clips the gradients, applies them, updates the averages; returns the norm before clipping."""
        gradients = [tf.convert_to_tensor(g) for g in gradients]
        norm = tf.linalg.global_norm(gradients)
        if self.phase.clip_norm:  # most steps need no clipping: spare them a pass over all gradients
            gradients = tf.cond(
                norm > self.phase.clip_norm,
                lambda: [g * (self.phase.clip_norm / norm) for g in gradients],
                lambda: gradients,
            )
        split = len(self.groups[0])
        for optimizer, part, variables in zip(
            self.optimizers, (gradients[:split], gradients[split:]), self.groups, strict=True
        ):
            if variables:
                optimizer.apply(part, variables)
        if self.averages:
            self._update_ema()
        return norm

    def _update_ema(self) -> None:
        """Updates the exponential moving averages of the weights.

        During the first steps they decay faster, so that the initial weights count for little. After
        `EMA_WARMUP_STEPS` they change slowly: every fourth step updates them, by as much as four steps would.
        """
        step = self.optimizers[0 if self.groups[0] else 1].iterations
        share = tf.cast(1 + step, tf.float32) / tf.cast(10 + step, tf.float32)
        young = step < EMA_WARMUP_STEPS
        decay = tf.minimum(self.phase.ema_decay, share) ** tf.where(young, 1.0, EMA_EVERY)

        def move() -> Any:
            for average, variable in zip(self.averages, self.variables_trained, strict=True):
                tf.raw_ops.ResourceApplyGradientDescent(  # a pass over memory less than assign_sub
                    var=average.handle, alpha=1 - decay, delta=average - variable
                )
            return tf.constant(True)

        tf.cond(young | (step % EMA_EVERY == 0), move, lambda: tf.constant(False))

    def learning_rate(self) -> float:
        """The decoder's present learning rate; the encoder's if only that is trained."""
        index = 0 if self.groups[0] else 1
        return float(self.schedules[index](self.optimizers[index].iterations))

    def swap_ema_weights(self) -> None:
        """Exchanges the weights and their averages; a second call exchanges them back."""
        for average, variable in zip(self.averages, self.variables_trained, strict=True):
            value = tf.identity(tf.convert_to_tensor(variable))
            variable.assign(average)
            average.assign(value)
