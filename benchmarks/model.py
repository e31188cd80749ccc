"""Our U-Net against diffusers' UNet2DModel: same weights, same inputs, one thread, eager. Method: benchmarks/README.md.

python benchmarks/model.py [--quick] [--json] [--check] [--save]
"""

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import UNet2DModel
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from outcome import parsed, tell

from pipeline.config.model import ModelConfig
from pipeline.models.layers import Conv3x3
from pipeline.models.unet import UNet

FORWARD_BAR, TRAIN_BAR, ERROR_BAR = 1.3, 1.15, 1e-5
PAPER = (ModelConfig(), 3, 32, 32)  # configuration, channels, size, batch
DIGITS = (ModelConfig(block_out_channels=(32, 64), norm_num_groups=8), 1, 8, 64)


def pair(config: ModelConfig, channels: int, size: int) -> tuple[UNet, UNet2DModel]:
    """The two networks with one set of random weights."""
    attends = [level in config.attention_levels for level in range(len(config.block_out_channels))]
    theirs = UNet2DModel(
        sample_size=size,
        in_channels=channels,
        out_channels=channels,
        block_out_channels=config.block_out_channels,
        layers_per_block=config.layers_per_block,
        down_block_types=["AttnDownBlock2D" if a else "DownBlock2D" for a in attends],
        up_block_types=["AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attends)],
        attention_head_dim=None,
        norm_num_groups=config.norm_num_groups,
        norm_eps=config.norm_eps,
        flip_sin_to_cos=False,
        freq_shift=1,
        downsample_padding=0,
    )
    ours = UNet(config, channels, channels, size)
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


def seconds(run: Callable[[], object]) -> float:
    """CPU seconds of this process: with one thread, the wall time of an idle machine."""
    start = time.process_time()
    run()
    return time.process_time() - start


def interleaved(rounds: int, runs: dict[str, Callable[[], object]]) -> dict[str, list[float]]:
    """Seconds of every run in every round; one round of warm-up is discarded."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds + 1):
        for name, run in runs.items():
            took = seconds(run)
            if number:
                times[name].append(took)
    return times


def ratio(times: dict[str, list[float]], theirs: str, ours: str) -> float:
    """Median over rounds of theirs / ours: both halves of a quotient had the same load on the machine."""
    return statistics.median(b / a for a, b in zip(times[ours], times[theirs], strict=True))


def train_step(net: nn.Module, call: Callable[[], Tensor], target: Tensor) -> Callable[[], None]:
    optimiser = torch.optim.AdamW(net.parameters(), lr=1e-5, fused=True)

    def run() -> None:
        optimiser.zero_grad(set_to_none=True)
        nn.functional.mse_loss(call(), target).backward()
        optimiser.step()

    return run


def gemm(size: int = 2048) -> Callable[[], object]:
    a, b = torch.randn(size, size), torch.randn(size, size)
    return lambda: a @ b


def plain(ours: UNet, run: Callable[[], object]) -> Callable[[], object]:
    """`run` with Winograd's algorithm switched off."""
    layers = [module for module in ours.modules() if isinstance(module, Conv3x3)]

    def off() -> None:
        for layer in layers:
            layer.fast = False
        run()
        for layer in layers:
            layer.fast = True

    return off


def measure(case: tuple[ModelConfig, int, int, int], rounds: int, with_plain: bool) -> dict[str, float]:
    """Times one configuration: ratios, shares of the GEMM rate, largest difference of the outputs."""
    config, channels, size, batch = case
    ours, theirs = pair(config, channels, size)
    x, target = torch.randn(batch, channels, size, size), torch.randn(batch, channels, size, size)
    t = torch.randint(0, 1000, (batch,))
    call_ours, call_theirs = lambda: ours(x, t), lambda: theirs(x, t).sample
    with torch.no_grad():
        with FlopCounterMode(display=False) as counter:
            theirs(x[:1], t[:1])
        flops = counter.get_total_flops() * batch
        expected = call_theirs()
        error = float((call_ours() - expected).abs().max() / expected.abs().max().clamp(min=1))
        runs = {"ours": call_ours, "theirs": call_theirs, "gemm": gemm()}
        forward = interleaved(rounds, runs | ({"plain": plain(ours, call_ours)} if with_plain else {}))
    step_ours = train_step(ours, call_ours, target)
    runs = {"ours": step_ours, "theirs": train_step(theirs, call_theirs, target), "gemm": gemm()}
    train = interleaved(rounds, runs | ({"plain": plain(ours, step_ours)} if with_plain else {}))
    found = {"forward": ratio(forward, "theirs", "ours"), "train": ratio(train, "theirs", "ours"), "error": error}
    for kind, times, work in (("forward", forward, flops), ("train", train, 3 * flops)):
        for name in times.keys() - {"gemm"}:
            share = statistics.median(
                work * g / s / (2 * 2048**3) for s, g in zip(times[name], times["gemm"], strict=True)
            )
            found[f"{kind}_{name}_gemm_share"] = share
            found[f"{kind}_{name}_images_per_second"] = batch / statistics.median(times[name])
        if with_plain:
            found[f"{kind}_plain"] = ratio(times, "theirs", "plain")
    return found


def judged(paper: dict[str, float], digits: dict[str, float]) -> dict[str, dict[str, object]]:
    result: dict[str, dict[str, object]] = {
        "forward_vs_diffusers": {"value": paper["forward"], "bar": FORWARD_BAR, "ok": paper["forward"] >= FORWARD_BAR},
        "train_vs_diffusers": {"value": paper["train"], "bar": TRAIN_BAR, "ok": paper["train"] >= TRAIN_BAR},
        "relative_error": {"value": paper["error"], "bar": ERROR_BAR, "ok": paper["error"] <= ERROR_BAR},
    }
    rest = {name: value for name, value in paper.items() if name not in ("forward", "train", "error")}
    rest |= {f"digits_{name}": value for name, value in digits.items()}
    return result | {name: {"value": value, "bar": None, "ok": True} for name, value in sorted(rest.items())}


def main() -> int:
    args = parsed(__doc__, "model", quick="fewer rounds, no plain path")
    torch.set_num_threads(1)
    paper = measure(PAPER, 2 if args.quick else 5, with_plain=not args.quick)
    result = judged(paper, measure(DIGITS, 20 if args.quick else 60, with_plain=not args.quick))
    return tell(args, "model", result)


if __name__ == "__main__":
    sys.exit(main())
