"""Networks written as people write them, one for each family of operators; the class says what goes in."""

from __future__ import annotations

import warnings
from collections import OrderedDict

import torch
from torch import nn
from torch.nn import functional

IMAGE, SEQUENCE, FREE_SEQUENCE = ("batch", 4, 16, 16), ("batch", 10, 16), ("batch", "time", 16)
ALL: list[type[nn.Module]] = []


def listed(kind: type[nn.Module]) -> type[nn.Module]:
    ALL.append(kind)
    return kind


@listed
class Encoder(nn.Module):
    shape = FREE_SEQUENCE

    def __init__(self) -> None:
        super().__init__()
        self.after = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)
        self.before = nn.TransformerEncoderLayer(16, 2, 24, batch_first=True, norm_first=True, activation="gelu")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.before(self.after(x))


@listed
class MultiHead(nn.Module):
    shape = SEQUENCE

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(16, 4, batch_first=True)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        made, weights = self.attention(x, x, x)
        assert weights is not None
        return made, weights


@listed
class Causal(nn.Module):
    shape = FREE_SEQUENCE

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(16, 48), nn.Linear(16, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, time, width = x.shape
        q, k, v = self.qkv(x).view(batch, time, 3, 4, 4).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(mixed.transpose(1, 2).reshape(batch, time, width))


@listed
class Shuffled(nn.Module):
    shape = IMAGE

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(2, 2, 3, padding=1), nn.BatchNorm2d(2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a, b = x.chunk(2, 1)
        y = torch.cat([a, functional.relu(self.norm(self.conv(b)))], 1)
        n, c, h, w = y.size()
        return y.view(n, 2, c // 2, h, w).transpose(1, 2).contiguous().view(n, -1, h, w).mean([2, 3])


@listed
class SqueezeExcite(nn.Module):
    """In-place activations and dropout, as MobileNetV3 has them."""

    shape = IMAGE

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.pool = nn.Conv2d(4, 8, 3, padding=1, groups=2), nn.AdaptiveAvgPool2d(1)
        self.down, self.up, self.head = nn.Conv2d(8, 2, 1), nn.Conv2d(2, 8, 1), nn.Linear(8, 5)
        self.active, self.gate = nn.Hardswish(inplace=True), nn.Hardsigmoid(inplace=True)
        self.dropout = nn.Dropout(0.2, inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.active(self.conv(x))
        x = x * self.gate(self.up(functional.relu(self.down(self.pool(x)), inplace=True)))
        return self.head(self.dropout(torch.flatten(self.pool(x), 1)))


@listed
class UNet(nn.Module):
    shape = IMAGE

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(4, 8, 3, padding=1), nn.Conv2d(8, 16, 3, padding=1)
        self.up, self.last = nn.ConvTranspose2d(16, 8, 2, 2), nn.Conv2d(16, 3, 3, padding="same")
        self.group, self.instance = nn.GroupNorm(2, 8), nn.InstanceNorm2d(16, affine=True)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        a = functional.silu(self.group(self.first(x)))
        b = functional.mish(self.instance(self.second(functional.max_pool2d(a, 2))))
        up = functional.interpolate(self.up(b), size=a.shape[-2:], mode="bilinear", align_corners=False)
        y = self.last(torch.cat([a, up], 1))
        return functional.interpolate(y, scale_factor=2.0, mode="nearest"), functional.pad(y, [1, 1, 2, 0], "reflect")


@listed
class Interpolations(nn.Module):
    """Without a size in the arguments, scripting records `interpolate` as one operator."""

    shape = IMAGE

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        a = functional.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)
        b = functional.interpolate(x, size=[9, 7], mode="bilinear", align_corners=True)
        return a, b, functional.interpolate(x.flatten(2), scale_factor=0.5, mode="linear")


@listed
class Elementwise(nn.Module):
    shape = SEQUENCE

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        a = functional.gelu(x) + functional.gelu(x, approximate="tanh") + functional.softmax(x, -1) * torch.sign(x)
        b = torch.where(x > 0, x, -x).clamp(0, 1) + x.pow(2) + x**3 + torch.sqrt(x.abs()) + torch.rsqrt(x.abs() + 1)
        c = functional.elu(x) + functional.selu(x) + functional.leaky_relu(x, 0.1) + functional.softplus(x, 2.0)
        d = functional.hardtanh(x) + functional.relu6(x) + functional.logsigmoid(x) + functional.softsign(x)
        e = torch.log1p(x.abs()) + torch.expm1(x) + torch.log2(x.abs() + 1) - torch.exp(-x) / 3 + (2.0 - x)
        f = functional.glu(x, -1) + torch.lerp(x, b, 0.3)[..., :8] + torch.addcmul(a, b, c, value=0.5)[..., 8:]
        g = torch.floor_divide(x, 0.3) + torch.remainder(x, 0.7) + torch.div(x, 0.4, rounding_mode="trunc")
        h = (x > 0.1) & (x < 1) | ~(x == x.max()) ^ (x != 0)
        return a + b + c, d + e + g + h.to(x.dtype) + h.long().sum(1, keepdim=True), f


@listed
class Reductions(nn.Module):
    shape = SEQUENCE

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        a = x.norm(2, dim=-1, keepdim=True) + x.norm(3.0, dim=1, keepdim=True) + x.amax(1, keepdim=True)
        b = x.std(-1, keepdim=True) + x.var(1, keepdim=True, unbiased=False) + x.logsumexp(1, keepdim=True)
        c = x.cumsum(1) + x.prod(1, keepdim=True) + x.mean() + x.sum((1, 2), keepdim=True)
        top, where = x.topk(3, 1)
        largest, place = x.max(1)
        return a + b + c, top, where + x.argmin(1, keepdim=True) + place[:, None], largest + x.min(1)[0]


@listed
class Moves(nn.Module):
    shape = SEQUENCE

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        a = (
            x.roll([1, 2], [1, 2]).flip(1)
            - x.repeat(1, 2, 1)[:, 3:13]
            + x.narrow(1, 2, 3)[:, 0, None].expand(-1, 10, -1)
        )
        b = torch.stack(list(x.split(5, 1)), 1).sum(1)
        c = torch.baddbmm(torch.zeros(10), x, x.transpose(1, 2)) + torch.einsum("btc,bsc->bts", x, x)
        c = c.masked_fill(torch.ones(10, 10, dtype=torch.bool).triu(1), -1e9).softmax(-1)
        d = torch.arange(x.shape[0])[:, None, None] + x.new_zeros(x.shape[0], 2, 3) + x[:, ::5, [1, 0, 2]]
        return (
            a + c @ x,
            b.flatten(1),
            d,
            torch.gather(x, 1, x.argsort(1)[:, :2]) + x.index_select(1, torch.tensor([3, 1])),
        )


@listed
class PicksOfEachSample(nn.Module):
    """Elements by one index for the free batch and others for positions, as attention masks are looked up."""

    shape = SEQUENCE

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        sample = torch.arange(x.shape[0])
        positions = torch.arange(10)
        return (
            x[sample[:, None, None, None], positions[None, None, :, None], torch.tensor([3, 0])[None, None, None, :]],
            x[sample, torch.zeros(1, dtype=torch.long)],
        )


@listed
class WeightNorm(nn.Module):
    """Weights that are divided by their norm, of each output and of all: what `weight_norm` computes in `forward`."""

    shape = SEQUENCE

    def __init__(self) -> None:
        super().__init__()
        self.v, self.g = nn.Parameter(torch.randn(8, 10, 3)), nn.Parameter(torch.rand(8, 1, 1) + 1)
        self.w, self.h = nn.Parameter(torch.randn(4, 14)), nn.Parameter(torch.rand(()) + 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.conv1d(x, torch._weight_norm(self.v, self.g, 0)).relu()
        return functional.linear(x, torch._weight_norm(self.w, self.h, -1))


@listed
class InPlace(nn.Module):
    """Changes tensors in place, through views as well, of constants and of data."""

    shape = SEQUENCE

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y = x * 2
        same = y.view(-1, 160)
        y[:, :2].add_(1.0)
        y[:, 3] = x[:, 0]
        y[:, :, 4:6] = 5.0
        mask = torch.zeros(10, 10)
        for step in range(5):
            mask[step * 2 : step * 2 + 2] = float(step)
        z = torch.zeros_like(x)
        z[:, :-1] = x[:, 1:]
        z.mul_(2).relu_()
        w = same.contiguous() if y.shape[1] > 100 else z
        return y @ x.transpose(1, 2) + mask, w


@listed
class Recurrent(nn.Module):
    shape = FREE_SEQUENCE

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(16, 12, 2, batch_first=True, bidirectional=True)
        self.gru, self.rnn = nn.GRU(24, 8), nn.RNN(8, 6, 2, nonlinearity="relu", bias=False)
        self.head = nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        y, (h, c) = self.lstm(x)
        z, last = self.gru(y.transpose(0, 1), torch.ones(1, x.shape[0], 8))
        w, _ = self.rnn(z)
        return self.head(w.transpose(0, 1)), h + c, last


@listed
class Steps(nn.Module):
    """Cells, one step after the other."""

    shape = SEQUENCE

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.gru, self.rnn = nn.LSTMCell(16, 12), nn.GRUCell(12, 8), nn.RNNCell(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h, c, g, r = x.new_zeros(x.shape[0], 12), x.new_zeros(x.shape[0], 12), x.new_ones(x.shape[0], 8), x[:, 0, :8]
        for step in range(x.shape[1]):
            h, c = self.lstm(x[:, step], (h, c))
            g = self.gru(h, g)
            r = self.rnn(g, r)
        return r + c[:, :8]


@listed
class Positions(nn.Module):
    """A table of relative positions read by a buffer of numbers, and a token in front, as in vision transformers."""

    shape = SEQUENCE

    def __init__(self) -> None:
        super().__init__()
        self.table, self.token = nn.Parameter(torch.randn(49, 4)), nn.Parameter(torch.randn(1, 1, 16))
        self.register_buffer("index", torch.randint(0, 49, (10, 10)))
        self.norm = nn.LayerNorm(16)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        bias = self.table[self.index.view(-1)].view(10, 10, 4).permute(2, 0, 1).contiguous().unsqueeze(0)
        return self.norm(x) + bias.sum((1, 2, 3)), torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1)


@listed
class Loops(nn.Module):
    shape = SEQUENCE

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(16, 16) for _ in range(3)])

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        made: list[torch.Tensor] = []
        for layer in self.layers:
            x = functional.relu(layer(x))
            made.append(x)
        for turn in range(x.shape[1] // 4):
            if turn % 2 == 0:
                x = x + made[turn % 3] * turn
        return torch.cat(made, -1), x


@listed
class Containers(nn.Module):
    """Operators that return nothing: warnings, and changes of lists and dicts."""

    shape = SEQUENCE

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        warnings.warn("this network is old", stacklevel=2)
        parts, named = [x * 2], {"first": x + 1}
        parts.insert(0, x - 1)
        parts.extend([x.relu(), x.abs()])
        named["last"] = torch.cat(parts, 1)
        ordered = OrderedDict()
        ordered["last"] = named["last"] * 2
        return named["first"], ordered["last"]


@listed
class Pools(nn.Module):
    shape = IMAGE

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        return [
            functional.adaptive_avg_pool2d(x, [4, 3]),
            functional.adaptive_max_pool2d(x, 4),
            functional.adaptive_max_pool2d(x, [32, 48]),
            functional.avg_pool2d(x, 3, 2, 1, count_include_pad=False),
            functional.max_pool2d(x, 3, 2, 1, ceil_mode=True),
            functional.pixel_shuffle(x, 2),
            functional.pixel_unshuffle(x, 2),
            functional.channel_shuffle(x, 2),
            functional.pad(x, [1, 2, 3, 4], mode="circular"),
            functional.pad(x, [1, 2, 0, 1], mode="replicate"),
            functional.interpolate(x, size=[7, 9], mode="bicubic"),
            functional.interpolate(x, size=[8, 24], mode="nearest"),
        ]


@listed
class Stretched(nn.Module):
    """A pooled size larger than what comes in, before a linear layer: VGG on small pictures."""

    shape = IMAGE

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(4, 12, 3, 2, 1), nn.Linear(12 * 16 * 24, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(functional.adaptive_avg_pool2d(self.conv(x).relu(), [16, 24]).flatten(1))


@listed
class Scaled(nn.Module):
    """A parameter without axes."""

    shape = SEQUENCE

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.5), requires_grad=False)
        self.register_buffer("offset", torch.tensor(0.5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.scale + self.offset


@listed
class Compared(nn.Module):
    """Two views of a picture, one of them warped, and how alike they are."""

    shape = IMAGE

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("grid", torch.rand(1, 8, 9, 2) * 2 - 1)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        warped = functional.grid_sample(x, self.grid.expand(x.shape[0], -1, -1, -1), align_corners=False)
        a, b = warped, functional.interpolate(x, size=[8, 9])
        return functional.cosine_similarity(a, b), functional.pairwise_distance(a.flatten(1), b.flatten(1)), warped
