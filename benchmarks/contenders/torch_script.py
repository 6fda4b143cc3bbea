"""Trains a half-width vgg11_bn on a folder of 32-pixel images, as one does in torch."""

import json
import math
import pathlib
import sys
import time

import torch  # pyright: ignore[reportMissingImports]
import torchvision  # pyright: ignore[reportMissingImports]
from torchvision.transforms import v2  # pyright: ignore[reportMissingImports]

options = json.loads(sys.argv[1])
torch.manual_seed(options["seed"])
torch.set_num_threads(options["threads"])
steps, warmup = options["steps"], options["warmup_steps"]

to_floats = [
    v2.ToImage(),
    v2.ToDtype(torch.float32, scale=True),
    v2.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
]


def loader(split, views, *, train):
    images = torchvision.datasets.ImageFolder(
        f"{options['folder']}/{split}", v2.Compose([*views, *to_floats])
    )
    return torch.utils.data.DataLoader(
        images,
        options["batch"],
        shuffle=train,
        drop_last=train,
        num_workers=options["threads"],
        persistent_workers=True,
    )


def endless(batches):
    while True:
        yield from batches


widths = [x if x == "M" else x // 2 for x in torchvision.models.vgg.cfgs["A"]]
net = torch.nn.Sequential(
    torchvision.models.vgg.make_layers(widths, batch_norm=True),
    torch.nn.AdaptiveAvgPool2d(1),
    torch.nn.Flatten(),
    torch.nn.Linear(256, 10),
)
for module in net.modules():  # torchvision's VGG's own
    if isinstance(module, torch.nn.Conv2d):
        torch.nn.init.kaiming_normal_(module.weight, mode="fan_out")
    elif isinstance(module, torch.nn.Linear):
        torch.nn.init.normal_(module.weight, 0, 0.01)
layout = torch.contiguous_format
if options["mode"] != "eager":
    layout = torch.channels_last
net = net.to(memory_format=layout)
forward = torch.compile(net) if options["mode"] == "compile" else net
optimizer = torch.optim.SGD(
    net.parameters(),
    options["learning_rate"],
    momentum=options["momentum"],
    weight_decay=options["weight_decay"],
)
schedule = torch.optim.lr_scheduler.LambdaLR(
    optimizer,
    lambda step: min(
        (step + 1) / warmup,
        0.5 + 0.5 * math.cos(math.pi * max(0, step - warmup) / (steps - warmup)),
    ),
)

begin = 0.0
batches = endless(loader("train", [v2.RandomCrop(32, padding=4)], train=True))
for step in range(steps):
    images, labels = next(batches)
    images = images.to(memory_format=layout)
    loss = torch.nn.functional.cross_entropy(forward(images), labels)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
    schedule.step()
    if step == 1:  # compiled, and the workers are up
        begin = time.perf_counter()
seconds = time.perf_counter() - begin

net.eval()
right = count = 0
with torch.inference_mode():
    for images, labels in loader("test", [], train=False):
        right += (net(images.to(memory_format=layout)).argmax(1) == labels).sum().item()
        count += len(labels)
speed = (steps - 2) * options["batch"] / seconds
result = {"images_per_second": speed, "accuracy": right / count}
pathlib.Path(sys.argv[2]).write_text(json.dumps(result))
