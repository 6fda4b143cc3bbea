"""torchvision's VGG: eager, channels-last, or channels-last through `torch.compile`."""

from typing import Any

import numpy as np
import safetensors.torch
import torch  # pyright: ignore[reportMissingImports]
import torch._inductor.config  # pyright: ignore[reportMissingImports]
import torchvision  # pyright: ignore[reportMissingImports]

from benchmarks.contenders import serve, work

_LAYERS = {"relu3_3": 16}  # of vgg16's `features`, those up to it


class _ToNHWC(torch.nn.Module):
    """As ours are; it costs a view."""

    def forward(self, x: Any) -> Any:
        return x.permute(0, 2, 3, 1)


def _net(spec: dict[str, Any]) -> Any:
    """torchvision's net, or its layers with a head of global average pooling."""
    if spec["head"] == "fc":
        net = torchvision.models.get_model(spec["variant"])
    else:
        column = {"vgg11_bn": "A", "vgg16_bn": "D"}[spec["variant"]]
        layers = torchvision.models.vgg.cfgs[column]
        widths = [x if x == "M" else round(x * spec["width"]) for x in layers]
        net = torch.nn.Module()
        net.features = torchvision.models.vgg.make_layers(widths, batch_norm=True)
        net.classifier = torch.nn.Linear(widths[-2], spec["classes"])
        net.forward = lambda x: net.classifier(net.features(x).mean((2, 3)))
    net.load_state_dict(safetensors.torch.load_file(spec["weights"]), strict=False)
    if spec["mode"] != "eager":
        net = net.to(memory_format=torch.channels_last)
    return net.train(spec["train"])


def _images(spec: dict[str, Any]) -> tuple[Any, Any]:
    """uint8 images as the mode has them in memory, and labels."""
    images, labels = work.batch(spec)
    tensor = torch.from_numpy(images).permute(0, 3, 1, 2)
    if spec["mode"] == "eager":
        tensor = tensor.contiguous()
    return tensor, torch.from_numpy(labels).long()


def _forward(net: Any, mode: str) -> Any:
    mean, std = (torch.from_numpy(x)[:, None, None] for x in (work.MEAN, work.STD))

    def forward(images: Any) -> Any:
        return net((images / 255 - mean) / std)

    return torch.compile(forward) if mode == "compile" else forward


def _infer(spec: dict[str, Any]) -> tuple[serve.Run, dict[str, Any]]:
    images, _ = _images(spec)
    net = _net(spec)
    if until := spec["until"]:
        net = torch.nn.Sequential(net.features[: _LAYERS[until]], _ToNHWC())
    torch._inductor.config.freezing = True  # weights packed, BatchNorm folded
    forward = _forward(net, spec["mode"])

    def run(repetitions: int) -> None:
        with torch.inference_mode():
            for _ in range(repetitions):
                forward(images)

    with torch.inference_mode():
        return run, work.kept(spec, "torchvision", logits=forward(images).numpy())


def _train(spec: dict[str, Any]) -> tuple[serve.Run, dict[str, Any]]:
    images, labels = _images(spec)
    net = _net(spec)
    optimizer = torch.optim.SGD(
        net.parameters(),
        work.LEARNING_RATE,
        momentum=work.MOMENTUM,
        weight_decay=work.WEIGHT_DECAY,
        fused=True,
    )

    def step(forward: Any) -> Any:
        optimizer.zero_grad(set_to_none=True)
        loss = torch.nn.functional.cross_entropy(forward(images), labels)
        loss.backward()
        optimizer.step()
        return loss

    facts: dict[str, Any] = {}
    if spec["checked"]:
        dropouts = [m for m in net.modules() if isinstance(m, torch.nn.Dropout)]
        for layer in dropouts:
            layer.p = 0.0
        before = net.features[0].weight.detach().clone()
        loss = step(_forward(net, spec["mode"])).item()
        change = (net.features[0].weight.detach() - before).numpy()
        change = np.transpose(change, (2, 3, 1, 0))  # OIHW -> HWIO
        facts = work.kept(spec, "torchvision", loss=loss, change=change)
        for layer in dropouts:
            layer.p = work.DROPOUT_RATE
        torch.compiler.reset()
    forward = _forward(net, spec["mode"])

    def run(repetitions: int) -> None:
        for _ in range(repetitions):
            step(forward)

    return run, facts


def prepare(spec: dict[str, Any]) -> tuple[serve.Run, dict[str, Any]]:
    """The work of `spec`."""
    torch.set_num_threads(spec["threads"])
    return _train(spec) if spec["train"] else _infer(spec)


if __name__ == "__main__":
    serve.serve(prepare)
