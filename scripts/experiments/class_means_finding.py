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

import torch

import dataset
from dataset.long_tail import make_long_tailed
from distiller_zoo import METHODS, Setup
from distiller_zoo.ikd import IKD, IKDLoss
from helper import cli
from helper.evaluation import FEW, MANY, class_accuracies, shots
from helper.loop import LiveTeacher, Phase, sgd, train_step
from helper.meters import Meters
from helper.objective import student_objective
from helper.schedule import rates
from helper.util.arguments import nonnegative_int, up_to_one
from helper.util.errors import UsageError, guarded
from helper.util.progress import progress
from models import load_model, model_dict
from models.precision import LOGITS

TEMPERATURE = 2.0


class PublishedIKD(IKD):
    """IKD with the class means of the published code."""

    def end_epoch(self, epoch):
        if self.collecting:
            self.means.copy_(self.sums / self.counts)


@torch.inference_mode()
def collect(teacher, views):
    """The teacher's logits (n, C), float64, and the labels (n,), over the views of a first epoch."""
    logits, labels, bar = [], [], progress("the teacher's logits", len(views), unit=" images")
    for batch in views.batches(views.plan(0, "1", "train", 1), 64):
        logits.append(teacher(batch).logits.double())
        labels.append(batch.labels)
        bar.update(len(batch.labels))
    bar.close()
    return torch.cat(logits), torch.cat(labels)


def class_means(logits, labels):
    """(right, published), each (C, C) with a class a row."""
    one_hot = torch.nn.functional.one_hot(labels, logits.shape[1]).double()
    sums, counts = one_hot.T @ logits, one_hot.sum(0)
    return sums / counts[:, None], sums / counts


def groups(counts):
    """{name: (C,) bool} of all, many-, medium- and few-shot classes."""
    many, few = counts > MANY, counts < FEW
    return {"all": counts > 0, "many": many, "medium": ~(many | few), "few": few}


def compare(logits, labels):
    """Print, by group of classes: the means' relative error, whose largest entry is their class's, the IKD loss."""
    right, published = class_means(logits, labels)
    classes = torch.arange(len(right))
    error = (published - right).norm(dim=1) / right.norm(dim=1)
    hit = [means.argmax(1) == classes for means in (right, published)]
    loss = [IKDLoss(TEMPERATURE)(logits, means, labels) for means in (right, published)]
    print(f"{'classes':<12}{'relative error of the means':>30}{'largest logit is its class':>30}"
          f"{'IKD loss of the teacher itself':>34}")
    print(f"{'':<12}{'median':>15}{'largest':>15}{'right':>15}{'published':>15}{'right':>17}{'published':>17}")
    for name, group in groups(torch.bincount(labels, minlength=len(right))).items():
        samples = group[labels]
        print(f"{name + f' ({group.sum()})':<12}{error[group].median():>15.2f}{error[group].max():>15.2f}"
              + "".join(f"{h[group].sum():>15}" for h in hit) + "".join(f"{x[samples].mean():>17.3f}" for x in loss))


def unseen(logits, labels):
    """Print what happens where the smallest class has no sample."""
    last = labels.bincount().argmin()
    kept = labels != last
    logits, labels = logits[kept], labels[kept]
    for name, means in zip(("right", "published"), class_means(logits, labels), strict=True):
        loss = IKDLoss(TEMPERATURE)(logits, means, labels)
        bad = (~means[labels.unique()].isfinite()).any(1).sum()
        print(f"without class {last}, {name}: {bad} of the other {len(means) - 1} means are not finite, "
              f"{(~loss.isfinite()).sum():,} of {len(loss):,} losses are not")


def train(teacher, data, views, test, a):
    """Train a student three times side by side, on the same views: KD, and with either IKD."""
    o = cli.student_options(f"--path_t {a.path_t} --distill kd -r 0.1 -a 0.9 --avg {a.avg} --epochs {a.epochs} "
                            f"--warm_up 0 --model_s {a.model_s}".split())
    o.lr_decay_epochs = []
    device = views.labels.device
    teacher = LiveTeacher(teacher, LOGITS)
    phases = {}
    for name in ("KD", "KD + IKD, right", "KD + IKD, published"):
        torch.manual_seed(0)
        student = model_dict[o.model_s](num_classes=len(data.classes)).to(device)
        with torch.no_grad():
            out_s, out_t = (network.eval()(torch.zeros(2, *data.image_shape, device=device), named=True)
                            for network in (student, teacher.network))
        setup = Setup(out_s, out_t, student.name, teacher.network.name, data.train.labels, len(data.classes))
        objective = student_objective(METHODS["kd"](setup, o), setup, o).to(device)
        if name == "KD":
            del objective.terms["ikd"]
        elif "published" in name:
            objective.terms["ikd"] = PublishedIKD(len(data.classes), o.intra_T, o.avg).to(device)
        phases[name] = Phase("train", student, teacher, objective, sgd(student.parameters(), o), rates(o), o.epochs)

    print(f"\n{teacher.network.name}→{o.model_s}, {o.epochs} epochs of batches of {o.batch_size}, rate "
          f"{o.learning_rate:g}; r 0.1, a 0.9, avg {o.avg:g}, intra_T {o.intra_T:g}", flush=True)
    for epoch in range(1, o.epochs + 1):
        meters = {name: Meters(list(phase.objective.terms), device) for name, phase in phases.items()}
        for phase in phases.values():
            phase.student.train()
            phase.objective.start_epoch(epoch, torch.Generator(device))
            phase.optimizer.param_groups[0]["lr"] = phase.rate(epoch)
        bar = progress(f"epoch {epoch}", len(views), unit=" images")
        for batch in views.batches(views.plan(0, "1", "train", epoch), o.batch_size):
            outputs = teacher(batch)
            for name, phase in phases.items():
                train_step(phase, batch, outputs, meters[name])
            bar.update(len(batch.labels))
        bar.close()
        for name, phase in phases.items():
            phase.objective.end_epoch(epoch)
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
    parser.add_argument("--avg", type=float, default=1.0, help="weight of the IKD term")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"), help="where it runs")
    a = parser.parse_args()
    teacher, checkpoint = load_model(a.path_t)
    data = make_long_tailed(dataset.load(a.dataset, a.data_dir), a.imbalance, 0)
    if checkpoint.num_classes != len(data.classes):
        raise UsageError(f"{a.path_t} is a teacher of {checkpoint.num_classes} classes, {a.dataset} has "
                         f"{len(data.classes)}: give a teacher trained on {a.dataset}")
    device = torch.device(a.device)
    views = data.train_views(device)
    print(f"{teacher.name}, {a.dataset}{data.note}; T = {TEMPERATURE:g}", flush=True)
    logits, labels = (x.cpu() for x in collect(LiveTeacher(teacher.to(device), LOGITS), views))
    compare(logits, labels)
    unseen(logits, labels)
    if a.epochs:
        train(teacher, data, views, data.test_images(device), a)


if __name__ == "__main__":
    guarded(main)
