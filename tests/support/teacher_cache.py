"""A small teacher, its data and its cache."""
import dataclasses

import numpy as np
import torch

import dataset
from helper.teacher.cache import Cache
from models import model_dict

CPU = torch.device("cpu")
WIDTHS = {"logits": 10, "pooled": 64}
BATCH = 16


def make_data(n=8, flip=False, n_test=16):
    """The first digits; also with mirroring, to see all 162 views."""
    data = dataset.load("digits", "")
    train, test = (dataset.Split(part.images[:k].clone(), part.labels[:k])
                   for part, k in ((data.train, n), (data.test, n_test)))
    return dataclasses.replace(data, train=train, test=test, flip=flip)


def make_teacher(seed=0):
    torch.manual_seed(seed)
    network = model_dict["resnet8"](num_classes=10)
    # Logits of a trained network's size, so that tolerances mean something.
    network.fc.weight.data *= 20
    return network.eval().requires_grad_(False)


def make_cache(root, network, data, dtype="float32"):
    return Cache(str(root), network, data, dtype, CPU, WIDTHS), data.train_views(CPU)


def build(root, n=8, fields=("logits",), dtype="float32"):
    """What a process of the tests does: build the cache of make_teacher() on make_data(n)."""
    network = make_teacher()
    cache, views = make_cache(root, network, make_data(n), dtype)
    fill(cache, list(fields), network, views)
    return cache


def fill(cache, fields, network, views, rows=None, stop=lambda: None):
    cache.prepare(fields, network, views, stop)
    cache.fill(fields, rows, network, views, BATCH, stop)


def count(cache, name="logits"):
    """How many rows are on the disk."""
    return int(np.count_nonzero(cache.have(name)))


def count_forwards(network, monkeypatch):
    """A list that grows by the batch's size whenever the network runs."""
    sizes, outputs = [], network.outputs
    monkeypatch.setattr(network, "outputs", lambda x: (sizes.append(len(x)), outputs(x))[1])
    return sizes
