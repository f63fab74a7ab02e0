#!/usr/bin/env python3
"""The later phases of the recipe `flickr8k`: fine-tuning beside its CNN alone, reward beside no reward.

    python scripts/bench_phases.py --data FLICKR8K --weights WEIGHTS     real pictures and captions
    python scripts/bench_phases.py                                       drawn ones

Fine-tuning is the step of the recipe with its input pipeline, picture files to changed weights. Beside it the
same layers of the same CNN go forward and back on pixels that are in memory, and nothing else: as Keras has
them, and with the gradient of depthwise filters that training takes. The reward phase samples, scores and
follows the advantages; beside it the same steps with advantages made up. The last line is JSON.
"""

import argparse
import contextlib
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path
from typing import Any

import material
import measure


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    material.add_arguments(parser)
    parser.set_defaults(encoder="efficientnet_lite1")  # the recipe's
    parser.add_argument("--vocabulary", type=int, default=2500, help="V; default: %(default)s")
    parser.add_argument("--steps", type=int, default=12, help="of each a round; default: %(default)s")
    parser.add_argument("--longest", type=int, default=36, help="words of the longest drawn caption")
    quick = {"pictures": 96, "size": 96, "vocabulary": 200, "longest": 6, "steps": 1, "rounds": 1}
    arguments = material.parse(parser, quick)
    if arguments.side:
        return measure.serve(SIDES[arguments.side], arguments)
    with tempfile.TemporaryDirectory() as scratch:
        found = measure.take_turns(list(SIDES), arguments.rounds, ["--scratch", scratch])
    tuning, alone, quick, rewarded, unrewarded = (found[name] for name in SIDES)
    rate = "pictures_per_second"
    cnns = [("Keras's CNN alone", alone, rate), ("the CNN alone, our gradient", quick, rate)]
    figures = measure.compared("fine-tuning", "pictures/s", tuning, rate, cnns)
    without = [("made-up advantages", unrewarded, rate)]
    figures += measure.compared("reward phase", "pictures/s", rewarded, rate, without)
    more = {
        "finetune_share_of_cnn": tuning.median(rate) / alone.median(rate),
        "finetune_share_of_quick_cnn": tuning.median(rate) / quick.median(rate),
        "reward_costs_more": unrewarded.median(rate) / rewarded.median(rate) - 1,
        "reward_peak_memory_gib": rewarded.most("peak_memory_gib"),
    }
    measure.report("phases", figures, ours=tuning, more=more)
    return 0


class Phase:
    """A phase of the recipe, without its judging and saving.

    Args:
        arguments: of the script.
        name: finetune or reward.
        source: of pixels or features.
    """

    def __init__(self, arguments: argparse.Namespace, name: str) -> None:
        from captioner.config import load_config
        from captioner.models.decoder import CaptionDecoder
        from captioner.models.device import find_device
        from captioner.training.input_pipeline import TokenizedCaptions, TrainingBatches
        from captioner.training.micro_batches import use_cores_side_by_side
        from captioner.training.optimizers import TrainOptimizer
        from captioner.training.rewards import CaptionReward
        from captioner.training.train_step import TrainStep, trained_variables

        use_cores_side_by_side()
        config = load_config("flickr8k", [f"phases.{name}.augment={str(name == 'finetune').lower()}"])
        self.phase = phase = config.phases[name]
        self.encoder = material.load_encoder(arguments)
        given = material.captioned(arguments, self.encoder)
        source = given.source if name == "reward" else pixels_of(given.records, self.encoder, arguments)
        table = TokenizedCaptions(given.records, given.vocabulary, max_words=config.data.max_words)
        self.batches = TrainingBatches(table, source, phase=phase, seed=0)
        self.reward = CaptionReward(table.captions)
        decoder = CaptionDecoder(
            config.decoder,
            vocabulary_size=len(given.vocabulary),
            channels=self.encoder.channels,
            precision=find_device().precision(config.train.precision),
        )
        self.variables = trained_variables(phase, decoder, self.encoder)
        updater = TrainOptimizer(phase, self.batches.steps * phase.epochs, *self.variables)
        self.steps = TrainStep(config, phase, decoder, self.encoder, updater, given.vocabulary)
        self.facts = {"material": given.what, "pictures a batch": phase.pictures_per_batch}

    def run(self, steps: int) -> float:
        """Pictures a second over so many steps, those of reading ahead left out."""
        plan = self.batches.batch_order(0)
        times = [time.perf_counter()]
        for number, batch in enumerate(islice(self.batches.batches(0), steps + 1)):
            if self.phase.objective == "reward":
                self.steps.self_critical_step(batch, number, plan[number], self.reward)
            else:
                self.steps.train(batch, number)
            times.append(time.perf_counter())
        return (len(times) - 2) * self.phase.pictures_per_batch / (times[-1] - times[1])


def pixels_of(records: list[Any], encoder: Any, arguments: argparse.Namespace) -> Any:
    """Picture files, those of the data set or drawn ones, read as training reads them."""
    from captioner.data.datasets import CaptionedImage
    from captioner.training.input_pipeline import PixelSource

    if not arguments.data:
        folder = Path(arguments.scratch) / "drawn"
        paths, _ = material.picture_files(None, len(records), folder=folder)
        pairs = zip(records, paths, strict=True)
        records = [CaptionedImage(record.id, path, record.captions) for record, path in pairs]
    return PixelSource(records, encoder.size)


def measured(phase: Phase, steps: int) -> tuple[measure.Facts, measure.Round]:
    """That phase as a side."""
    steps = min(steps, phase.batches.steps - 1)
    phase.run(min(steps, 4))
    return phase.facts, lambda: {"pictures_per_second": phase.run(steps)}


def finetune(arguments: argparse.Namespace) -> tuple[measure.Facts, measure.Round]:
    """The step that trains encoder and decoder."""
    return measured(Phase(arguments, "finetune"), arguments.steps)


def cnn_alone(
    arguments: argparse.Namespace, gradient: Any = contextlib.nullcontext
) -> tuple[measure.Facts, measure.Round]:
    """Forward and back through the same layers, one part of the batch a core as in training."""
    import tensorflow as tf

    from captioner.system.hardware import cores

    phase = Phase(arguments, "finetune")
    model, batch, trained = phase.encoder.model, phase.phase.pictures_per_batch, phase.variables[1]
    rows = [batch // cores() + (number < batch % cores()) for number in range(cores())]
    parts = [tf.random.uniform([some, *phase.encoder.size, 3], 0, 255) for some in rows if some]

    @tf.function(autograph=False)
    def step() -> Any:
        variables = [v.value for v in trained]
        with tf.GradientTape(watch_accessed_variables=False) as tape, gradient():
            tape.watch(variables)
            loss = tf.add_n([tf.reduce_mean(model(part, training=False) ** 2) for part in parts])
        return [tf.reduce_sum(gradient) for gradient in tape.gradient(loss, variables)]

    def rate() -> dict[str, float]:
        began = time.perf_counter()
        for _ in range(arguments.steps):
            step()[0].numpy()
        return {"pictures_per_second": arguments.steps * batch / (time.perf_counter() - began)}

    step()
    return {}, rate


def quick_cnn_alone(arguments: argparse.Namespace) -> tuple[measure.Facts, measure.Round]:
    """The same with the gradient of depthwise filters that training takes."""
    from captioner.models.layers import depthwise_conv as depthwise

    return cnn_alone(arguments, depthwise.trained)


def reward(arguments: argparse.Namespace) -> tuple[measure.Facts, measure.Round]:
    """The step that samples captions and is rewarded for them, on cached features."""
    return measured(Phase(arguments, "reward"), arguments.steps)


def no_reward(arguments: argparse.Namespace) -> tuple[measure.Facts, measure.Round]:
    """The same, with advantages that cost nothing."""
    import numpy as np

    phase = Phase(arguments, "reward")
    made_up = np.random.default_rng(0).normal(size=(phase.phase.pictures_per_batch, phase.phase.samples))

    def advantages(pictures: Any, words: Any, lengths: Any) -> tuple[Any, float]:
        return made_up[: len(words)].astype(np.float32), 0.0

    phase.reward = advantages
    return measured(phase, arguments.steps)


SIDES: dict[str, measure.Side] = {
    "finetune": finetune,
    "cnn": cnn_alone,
    "quick_cnn": quick_cnn_alone,
    "reward": reward,
    "no_reward": no_reward,
}

if __name__ == "__main__":
    sys.exit(main())
