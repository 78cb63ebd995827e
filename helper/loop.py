"""The training loop: the same for students, teachers and a method's first stage."""
import time

from dataset import EvalData
from helper.evaluation import evaluate
from helper.meters import Averages, Meters
from helper.record.run import Record
from helper.step import Phase, Step, choose_step


def fit(phase: Phase, test: EvalData, record: Record) -> None:
    """Train the phase's remaining epochs; `record` knows which are done, and keeps each.

    Raises RunError where a loss is not finite, Interrupted where a signal has asked to stop.
    """
    first = record.resume(phase) + 1
    step, meters = choose_step(phase), phase.meters()
    for epoch in range(first, phase.epochs + 1):
        started = time.perf_counter()
        averages = train_epoch(phase, epoch, step, meters, record)
        seconds = time.perf_counter() - started
        tested = evaluate(phase.student, test, phase.precision) if phase.evaluates else None
        record.end_epoch(phase, epoch, averages, tested, seconds)
    phase.close()


def train_epoch(phase: Phase, epoch: int, step: Step, meters: Meters, record: Record) -> Averages:
    """Train one epoch; returns the averages of its losses and of the training accuracy. Raises as `fit`."""
    phase.start_epoch(epoch)
    meters.reset()
    for number, (batch, teacher) in enumerate(phase.batches(epoch), 1):
        step(phase, batch, teacher, meters)
        record.end_step(phase, epoch, number, meters)
    averages = meters.read()
    phase.end_epoch(epoch)
    return averages
