import pytest
import torch
from torch import fx, nn

from worker.compressor.graph.training.rows import cancel


class Holder(nn.Module):
    def __init__(self):
        super().__init__()
        self.w, self.v = nn.Parameter(torch.randn(12, 5)), nn.Parameter(torch.randn(12, 5))


def halves(w):
    return torch.ops.aten.slice(w, 0, 0, 6), torch.ops.aten.slice(w, 0, 6, 1 << 31)


def swapped_twice(m):
    a, b = halves(m.w)
    x = torch.unsqueeze(torch.cat([b, a]), 0)
    b, a = torch.split(torch.squeeze(x, 0), 6, 0)[0], torch.split(torch.squeeze(x, 0), 6, 0)[1]
    return torch.cat([a, b])


def stacked_and_opened(m):
    both = torch.unbind(torch.cat([torch.unsqueeze(m.w, 0), torch.unsqueeze(m.v, 0)], 0), 0)
    return both[0] @ both[1].t()


def narrowed_across(m):
    both = torch.cat([m.w, m.v])
    return torch.cat([torch.narrow(both, 0, 0, 4), torch.narrow(both, 0, 4, 8)])


def swapped_once(m):
    a, b = halves(m.w)
    return torch.cat([b, a])


def a_part(m):
    return torch.cat([halves(m.w)[0]])


def every_second(m):
    return torch.ops.aten.slice(m.w, 0, 0, 12, 2)


def other_axis(m):
    return torch.cat([torch.narrow(m.w, 1, 0, 2), torch.narrow(m.w, 1, 2, 3)], 1)


def recorded(function):
    root, graph = Holder(), fx.Graph()
    proxies = fx.proxy.GraphAppendingTracer(graph)
    module = type("Proxied", (), {name: fx.Proxy(graph.get_attr(name), proxies) for name in ("w", "v")})
    graph.output(function(module).node)
    wanted = function(root)
    cancel(graph, root)
    return wanted, fx.GraphModule(root, graph)


@pytest.mark.parametrize(
    ("function", "is_gone"),
    [
        (swapped_twice, True),
        (stacked_and_opened, True),
        (narrowed_across, True),
        (swapped_once, False),
        (a_part, False),
        (every_second, False),
        (other_axis, False),
    ],
)
def test_only_what_gives_the_parameter_again_is_taken_out(function, is_gone):
    wanted, module = recorded(function)
    assert torch.equal(module(), wanted)
    moving = (torch.cat, torch.split, torch.unbind, torch.narrow, torch.unsqueeze, torch.squeeze, torch.ops.aten.slice)
    assert any(node.target in moving for node in module.graph.nodes) != is_gone
