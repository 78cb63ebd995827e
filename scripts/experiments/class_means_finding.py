"""What the published class means of IKD do in a long tail, against the right ones, with a real teacher.

python scripts/experiments/class_means_finding.py --path_t TEACHER                # CIFAR-100-LT, one epoch's views
python scripts/experiments/class_means_finding.py --path_t TEACHER --epochs 6     # and short trainings of a student

The published code divides the columns of the sums by the counts (sums / counts), where their rows are meant
(sums / counts[:, None]). In class c's mean its logit of class k is so multiplied by n_c / n_k: one where the
counts are equal, as in CIFAR-100; from 0.01 to 100 in CIFAR-100-LT.
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import helper.util.start  # noqa: F401 (before PyTorch)

import torch

from distiller_zoo.ikd import IKD, IKDLoss
from helper import build, cli
from helper.device import open_device
from helper.evaluation import class_accuracies, shot_groups, shots
from helper.schedule import schedule
from helper.step import Phase, sgd, train_step
from helper.teacher.loader import DistillLoader
from helper.teacher.source import LiveTeacher
from helper.util.arguments import nonnegative_float, nonnegative_int, up_to_one
from helper.util.errors import guarded
from helper.util.progress import progress
from models import model_dict
from models.precision import LOGITS

TEMPERATURE = 2.0


class PublishedIKD(IKD):
    """IKD with the class means of the published code."""

    def end_epoch(self, epoch):
        if self.collecting:
            self.means.copy_(self.collected.sums / self.collected.counts)


def collect(loader):
    """The teacher's logits (n, C), float64, and the labels (n,), over the views of a first epoch, on the CPU."""
    logits, labels = [], []
    with progress("the teacher's logits", len(loader.views), unit=" images") as bar:
        for batch, teacher in loader.epoch(0, "1", "train", 1):
            logits.append(teacher.logits.double().cpu())
            labels.append(batch.labels.cpu())
            bar.update(len(batch.labels))
    return torch.cat(logits), torch.cat(labels)


def class_means(logits, labels):
    """(right, published), each (C, C) with a class a row."""
    one_hot = torch.nn.functional.one_hot(labels, logits.shape[1]).double()
    sums, counts = one_hot.T @ logits, one_hot.sum(0)
    return sums / counts[:, None], sums / counts


def compare(logits, labels):
    """Print, by group of classes: the means' relative error, whose largest entry is their class's, the IKD loss."""
    right, published = class_means(logits, labels)
    classes = torch.arange(len(right))
    error = (published - right).norm(dim=1) / right.norm(dim=1)
    correct = [means.argmax(1) == classes for means in (right, published)]
    loss = [IKDLoss(TEMPERATURE, reduction="none")(logits, means, labels) for means in (right, published)]
    print(f"{'classes':<12}{'relative error of the means':>30}{'largest logit is its class':>30}"
          f"{'IKD loss of the teacher itself':>34}")
    print(f"{'':<12}{'median':>15}{'largest':>15}{'right':>15}{'published':>15}{'right':>17}{'published':>17}")
    counts = torch.bincount(labels, minlength=len(right))
    for name, group in ({"all": counts > 0} | shot_groups(counts)).items():
        samples = group[labels]
        print(f"{name + f' ({group.sum()})':<12}{error[group].median():>15.2f}{error[group].max():>15.2f}"
              + "".join(f"{named[group].sum():>15}" for named in correct)
              + "".join(f"{x[samples].mean():>17.3f}" for x in loss))


def unseen(logits, labels):
    """Print what happens where the smallest class has no sample."""
    last = labels.bincount().argmin()
    kept = labels != last
    logits, labels = logits[kept], labels[kept]
    for name, means in zip(("right", "published"), class_means(logits, labels), strict=True):
        loss = IKDLoss(TEMPERATURE, reduction="none")(logits, means, labels)
        bad = (~means[labels.unique()].isfinite()).any(1).sum()
        print(f"without class {last}, {name}: {bad} of the other {len(means) - 1} means are not finite, "
              f"{(~loss.isfinite()).sum():,} of {len(loss):,} losses are not")


def train(options, without_ikd, data, teacher, loader, device):
    """Train a student three times side by side, from the same weights on the same views: KD, and with either IKD."""
    phases = {}
    for name, o in (("KD", without_ikd), ("KD + IKD, right", options), ("KD + IKD, published", options)):
        trainee = build.make_student(o, data, teacher, device)
        if "published" in name:
            trainee.objective.terms["ikd"] = PublishedIKD(len(data.classes), o.intra_T, o.avg).to(device)
        phases[name] = Phase("train", trainee.network, loader, trainee.objective,
                             sgd(trainee.network.parameters(), o), schedule(o), o.epochs, (o.seed, o.trial))
    test = data.test_images(device)
    print(f"\n{teacher.name}→{o.model_s}, {o.epochs} epochs of batches of {o.batch_size}, learning rate "
          f"{o.learning_rate:g}; r {o.gamma:g}, a {o.alpha:g}, avg {o.avg:g}, intra_T {o.intra_T:g}", flush=True)
    for epoch in range(1, o.epochs + 1):
        meters = {name: phase.meters() for name, phase in phases.items()}
        for phase in phases.values():
            phase.start_epoch(epoch)
        with progress(f"epoch {epoch}", len(loader), unit=" steps") as bar:
            for batch, outputs in phase.batches(epoch):
                for name, phase in phases.items():
                    train_step(phase, batch, outputs, meters[name])
                bar.update()
        for name, phase in phases.items():
            phase.end_epoch(epoch)
            top1 = class_accuracies(phase.student, test, len(data.classes))
            parts = ", ".join(f"{shot} {group['top1']:.2f}" for shot, group in shots(top1, data.shots).items())
            losses = ", ".join(f"{term} {value:.3f}" for term, value in meters[name].read().losses.items())
            print(f"epoch {epoch}  {name:<20}  test {top1.mean():.2f} ({parts})  loss: {losses}", flush=True)


def main():
    parser = cli.Parser(description=__doc__.split("\n")[0])
    parser.add_argument("--path_t", required=True, metavar="FILE", help="a teacher's checkpoint")
    parser.add_argument("--dataset", default="cifar100", choices=("cifar100", "cifar10", "digits"),
                        help="its training set is given a long tail")
    parser.add_argument("--data_dir", default="./data", metavar="DIR", help="where the data is")
    parser.add_argument("--imbalance", type=up_to_one, default=0.01, metavar="X", help="see docs/data.md")
    parser.add_argument("--epochs", type=nonnegative_int, default=0, metavar="N", help="of the trainings; 0: none")
    parser.add_argument("--model_s", default="resnet8", choices=model_dict, metavar="NAME", help="the student")
    parser.add_argument("--avg", type=nonnegative_float, default=1.0, help="weight of the IKD term")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"), help="where it runs")
    a = parser.parse_args()
    run = ["--distill", "kd", "-r", "0.1", "-a", "0.9", "--warm_up", "0", "--lr_decay_epochs", "",
           "--path_t", a.path_t, "--dataset", a.dataset, "--data_dir", a.data_dir, "--imbalance", str(a.imbalance),
           "--epochs", str(max(a.epochs, 1)), "--model_s", a.model_s, "--device", a.device]
    without_ikd, options = (cli.parse_student([*run, "--avg", avg])[0] for avg in ("0", str(a.avg)))
    device, data = open_device(options), build.load_data(options)
    teacher = build.load_teacher(options, data).to(device)
    loader = DistillLoader(data.train_views(device), LiveTeacher(teacher, LOGITS), options.batch_size)
    print(f"{teacher.name}, {a.dataset}{data.note}; T = {TEMPERATURE:g}", flush=True)
    logits, labels = collect(loader)
    compare(logits, labels)
    unseen(logits, labels)
    if a.epochs:
        train(options, without_ikd, data, teacher, loader, device)


if __name__ == "__main__":
    guarded(main)
