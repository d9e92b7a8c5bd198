"""Networks as users write them: with the habits of the field, and no thought of pruning.

They prove what the engine does on networks that it wasn't tuned on: one that fails is a fault of the engine. Each comes
with an example, and with further inputs of another length, size, batch or path that the network takes as well.
"""

from __future__ import annotations

import math
from collections import namedtuple
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Made = tuple[nn.Module, Any, list[Any]]
"""(model, example inputs, further inputs)"""

NETWORKS: dict[str, Callable[[], Made]] = {}


def network(make: Callable[[], Made]) -> Callable[[], Made]:
    """Enter a network into the table by its function's name."""
    NETWORKS[make.__name__] = make
    return make


def images(channels: int = 3, size: int = 16, others: tuple[tuple[int, int, int], ...] = ((3, 24, 20),)) -> Any:
    """Return an example [2, channels, size, size], and others by (batch, height, width)."""
    return torch.randn(2, channels, size, size), [torch.randn(n, channels, h, w) for n, h, w in others]


def tokens(length: int = 10, others: tuple[tuple[int, int], ...] = ((1, 5), (3, 15)), vocabulary: int = 40) -> Any:
    """Return example tokens [2, length], and others by (batch, length)."""
    return torch.randint(vocabulary, (2, length)), [torch.randint(vocabulary, other) for other in others]


# ---------------------------------------------------------------------------------------------------------- images


class ConvBlock(nn.Module):
    def __init__(self, cin, cout, k=3, s=1, act=nn.ReLU):
        super().__init__()
        self.conv, self.bn, self.act = nn.Conv2d(cin, cout, k, s, k // 2, bias=False), nn.BatchNorm2d(cout), act()

    def forward(self, x):
        return self.act(self.bn(self.conv(x)))


@network
def config_driven_cnn():
    class Net(nn.Module):
        def __init__(self, cfg=(16, "M", 24, 24, "M", 32)):
            super().__init__()
            self.features = self._make(cfg)
            self.avgpool = nn.AdaptiveAvgPool2d((2, 2))
            self.classifier = nn.Sequential(
                nn.Dropout(), nn.Linear(32 * 2 * 2, 48), nn.ReLU(True), nn.Dropout(), nn.Linear(48, 10)
            )

        def _make(self, cfg):
            layers, c = [], 3
            for v in cfg:
                layers += [nn.MaxPool2d(2)] if v == "M" else [ConvBlock(c, v)]
                c = c if v == "M" else v
            return nn.Sequential(*layers)

        def forward(self, x):
            x = self.avgpool(self.features(x))
            x = x.view(x.size(0), -1)
            return F.log_softmax(self.classifier(x), dim=1)

    return Net(), *images()


@network
def unet_with_cropped_skips():
    class Net(nn.Module):
        def __init__(self, widths=(8, 16, 24)):
            super().__init__()
            self.down, self.up, self.fuse = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
            c = 3
            for w in widths:
                self.down.append(nn.Sequential(ConvBlock(c, w), ConvBlock(w, w)))
                c = w
            for w in reversed(widths[:-1]):
                self.up.append(nn.ConvTranspose2d(c, w, 2, stride=2))
                self.fuse.append(ConvBlock(2 * w, w))
                c = w
            self.out = nn.Conv2d(c, 2, 1)

        def forward(self, x):
            skips = []
            for i, block in enumerate(self.down):
                x = block(x)
                if i < len(self.down) - 1:
                    skips.append(x)
                    x = F.max_pool2d(x, 2)
            for up, fuse in zip(self.up, self.fuse):
                x, skip = up(x), skips.pop()
                skip = skip[..., : x.shape[-2], : x.shape[-1]]
                x = fuse(torch.cat([skip, x], dim=1))
            return self.out(x)

    return Net(), *images(others=((1, 18, 22), (3, 32, 16)))


@network
def squeeze_excite_mobile():
    class SE(nn.Module):
        def __init__(self, c, r=4):
            super().__init__()
            self.fc1, self.fc2 = nn.Conv2d(c, c // r, 1), nn.Conv2d(c // r, c, 1)

        def forward(self, x):
            s = F.adaptive_avg_pool2d(x, 1)
            return x * F.hardsigmoid(self.fc2(F.relu(self.fc1(s))))

    class Inverted(nn.Module):
        def __init__(self, cin, cout, t, s):
            super().__init__()
            h = cin * t
            self.use_res = s == 1 and cin == cout
            self.block = nn.Sequential(
                nn.Conv2d(cin, h, 1, bias=False), nn.BatchNorm2d(h), nn.Hardswish(),
                nn.Conv2d(h, h, 3, s, 1, groups=h, bias=False), nn.BatchNorm2d(h), nn.Hardswish(), SE(h),
                nn.Conv2d(h, cout, 1, bias=False), nn.BatchNorm2d(cout),
            )

        def forward(self, x):
            return x + self.block(x) if self.use_res else self.block(x)

    net = nn.Sequential(
        ConvBlock(3, 16, s=2, act=nn.Hardswish), Inverted(16, 16, 2, 1), Inverted(16, 24, 3, 2), Inverted(24, 24, 3, 1),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 7),
    )
    return net, *images()


@network
def shuffle_with_split():
    def shuffle(x, groups):
        n, c, h, w = x.size()
        x = x.view(n, groups, c // groups, h, w)
        return torch.transpose(x, 1, 2).contiguous().view(n, -1, h, w)

    class Unit(nn.Module):
        def __init__(self, c):
            super().__init__()
            h = c // 2
            self.branch = nn.Sequential(ConvBlock(h, h, 1), nn.Conv2d(h, h, 3, 1, 1, groups=h), ConvBlock(h, h, 1))

        def forward(self, x):
            a, b = x.chunk(2, dim=1)
            return shuffle(torch.cat((a, self.branch(b)), dim=1), 2)

    return nn.Sequential(ConvBlock(3, 16), Unit(16), Unit(16), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5)), *images()


@network
def res2net_hierarchical():
    class Bottle2neck(nn.Module):
        def __init__(self, c, w=6, scale=4):
            super().__init__()
            self.scale, self.width = scale, w
            self.c1 = ConvBlock(c, w * scale, 1)
            self.convs = nn.ModuleList(ConvBlock(w, w) for _ in range(scale - 1))
            self.c3 = ConvBlock(w * scale, c, 1)

        def forward(self, x):
            spx = torch.split(self.c1(x), self.width, 1)
            out = None
            for i, conv in enumerate(self.convs):
                sp = spx[i] if i == 0 else sp + spx[i]
                sp = conv(sp)
                out = sp if i == 0 else torch.cat((out, sp), 1)
            out = torch.cat((out, spx[-1]), 1)
            return F.relu(x + self.c3(out))

    return nn.Sequential(ConvBlock(3, 12), Bottle2neck(12), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 5)), *images()


@network
def ghost_modules():
    class Ghost(nn.Module):
        def __init__(self, cin, cout):
            super().__init__()
            self.oup, half = cout, math.ceil(cout / 2)
            self.primary = ConvBlock(cin, half, 1)
            self.cheap = nn.Sequential(nn.Conv2d(half, half, 3, 1, 1, groups=half, bias=False), nn.BatchNorm2d(half), nn.ReLU())

        def forward(self, x):
            x1 = self.primary(x)
            out = torch.cat([x1, self.cheap(x1)], dim=1)
            return out[:, : self.oup, :, :]

    return nn.Sequential(Ghost(3, 15), Ghost(15, 20), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(20, 5)), *images()


@network
def bifpn_weighted_fusion():
    class Net(nn.Module):
        def __init__(self, c=12):
            super().__init__()
            self.c3, self.c4, self.c5 = ConvBlock(3, 8), ConvBlock(8, 16, s=2), ConvBlock(16, 24, s=2)
            self.lat = nn.ModuleList([nn.Conv2d(8, c, 1), nn.Conv2d(16, c, 1), nn.Conv2d(24, c, 1)])
            self.w = nn.Parameter(torch.ones(2, 2))
            self.smooth = nn.ModuleList(nn.Conv2d(c, c, 3, padding=1) for _ in range(2))
            self.cls, self.box = nn.Conv2d(c, 9, 3, padding=1), nn.Conv2d(c, 4, 3, padding=1)

        def forward(self, x):
            a = self.c3(x)
            b = self.c4(a)
            p3, p4, p5 = (lateral(f) for lateral, f in zip(self.lat, (a, b, self.c5(b))))
            w = F.relu(self.w)
            w = w / (w.sum(0) + 1e-4)
            p4 = self.smooth[0](w[0, 0] * p4 + w[1, 0] * F.interpolate(p5, size=p4.shape[-2:], mode="nearest"))
            p3 = self.smooth[1](w[0, 1] * p3 + w[1, 1] * F.interpolate(p4, size=p3.shape[-2:], mode="nearest"))
            return {"cls": [self.cls(p).permute(0, 2, 3, 1).reshape(x.shape[0], -1, 9) for p in (p3, p4, p5)],
                    "box": [self.box(p) for p in (p3, p4, p5)]}

    return Net(), *images()


@network
def yolo_head_with_grid():
    class Net(nn.Module):
        def __init__(self, nc=3, anchors=((1.0, 2.0), (2.0, 1.0))):
            super().__init__()
            self.nc, self.no, self.na = nc, nc + 5, len(anchors)
            self.register_buffer("anchors", torch.tensor(anchors))
            self.body = nn.Sequential(ConvBlock(3, 12, act=nn.SiLU), ConvBlock(12, 20, s=2, act=nn.SiLU))
            self.m = nn.Conv2d(20, self.no * self.na, 1)

        def forward(self, x):
            x = self.m(self.body(x))
            bs, _, ny, nx = x.shape
            x = x.view(bs, self.na, self.no, ny, nx).permute(0, 1, 3, 4, 2).contiguous()
            if self.training:
                return x
            yv, xv = torch.meshgrid(torch.arange(ny), torch.arange(nx), indexing="ij")
            grid = torch.stack((xv, yv), 2).view(1, 1, ny, nx, 2).float()
            xy, wh, conf = x.sigmoid().split((2, 2, self.nc + 1), 4)
            xy = (xy * 2 + grid) * 2
            wh = (wh * 2) ** 2 * self.anchors.view(1, self.na, 1, 1, 2)
            return torch.cat((xy, wh, conf), 4).view(bs, -1, self.no), [x]

    return Net(), *images()


@network
def spatial_transformer():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.loc = nn.Sequential(nn.Conv2d(1, 8, 5), nn.MaxPool2d(2), nn.ReLU(), nn.Conv2d(8, 10, 3), nn.ReLU())
            self.fc_loc = nn.Sequential(nn.Linear(10 * 4 * 4, 32), nn.ReLU(True), nn.Linear(32, 6))
            self.conv, self.fc = nn.Conv2d(1, 10, 5), nn.Linear(10, 10)

        def forward(self, x):
            theta = self.fc_loc(self.loc(x).view(-1, 10 * 4 * 4)).view(-1, 2, 3)
            x = F.grid_sample(x, F.affine_grid(theta, list(x.size()), align_corners=False), align_corners=False)
            return F.log_softmax(self.fc(F.relu(self.conv(x)).mean((-1, -2))), dim=1)

    return Net(), torch.randn(2, 1, 16, 16), [torch.randn(5, 1, 16, 16)]


@network
def superresolution_pixel_shuffle():
    class Net(nn.Module):
        def __init__(self, scale=2, c=12, blocks=3):
            super().__init__()
            self.head = nn.Conv2d(3, c, 3, padding=1)
            self.body = nn.ModuleList(nn.Sequential(nn.Conv2d(c, 2 * c, 3, padding=1), nn.PReLU(2 * c), nn.Conv2d(2 * c, c, 3, padding=1)) for _ in range(blocks))
            self.up = nn.Sequential(nn.Conv2d(c, 3 * scale**2, 3, padding=1), nn.PixelShuffle(scale))
            self.scale = scale
            self.register_buffer("mean", torch.tensor([0.4, 0.4, 0.4]).view(1, 3, 1, 1))

        def forward(self, x):
            x = x - self.mean
            y = self.head(x)
            r = y
            for b in self.body:
                y = y + 0.1 * b(y)
            return self.up(y + r) + F.interpolate(x, scale_factor=self.scale, mode="bilinear", align_corners=False) + self.mean

    return Net(), *images(others=((1, 9, 13),))


@network
def diffusion_unet_time_embedding():
    class ResBlock(nn.Module):
        def __init__(self, c, t):
            super().__init__()
            self.norm1, self.conv1 = nn.GroupNorm(4, c), nn.Conv2d(c, c, 3, padding=1)
            self.emb = nn.Linear(t, 2 * c)
            self.norm2, self.conv2 = nn.GroupNorm(4, c), nn.Conv2d(c, c, 3, padding=1)

        def forward(self, x, t):
            h = self.conv1(F.silu(self.norm1(x)))
            scale, shift = self.emb(F.silu(t))[:, :, None, None].chunk(2, dim=1)
            h = self.norm2(h) * (1 + scale) + shift
            return x + self.conv2(F.silu(h))

    class Net(nn.Module):
        def __init__(self, c=16):
            super().__init__()
            self.c = c
            self.time = nn.Sequential(nn.Linear(c, 32), nn.SiLU(), nn.Linear(32, 32))
            self.stem, self.r1, self.r2 = nn.Conv2d(3, c, 3, padding=1), ResBlock(c, 32), ResBlock(c, 32)
            self.q, self.out = nn.Conv2d(c, 3 * c, 1), nn.Conv2d(c, 3, 3, padding=1)

        def forward(self, x, t):
            half = self.c // 2
            freqs = torch.exp(-math.log(10000) * torch.arange(half, device=x.device) / half)
            args = t[:, None].float() * freqs[None]
            emb = self.time(torch.cat([args.cos(), args.sin()], dim=-1))
            h = self.r1(self.stem(x), emb)
            b, c, hh, ww = h.shape
            q, k, v = self.q(h).reshape(b, 3, c, hh * ww).unbind(1)
            a = torch.einsum("bct,bcs->bts", q * c**-0.5, k).softmax(-1)
            h = h + torch.einsum("bts,bcs->bct", a, v).reshape(b, c, hh, ww)
            return self.out(self.r2(h, emb))

    return Net(), (torch.randn(2, 3, 8, 8), torch.tensor([1, 7])), [(torch.randn(3, 3, 6, 10), torch.tensor([1, 2, 3]))]


@network
def vae_reparameterised():
    VAEOut = namedtuple("VAEOut", "recon mu logvar")

    class Net(nn.Module):
        def __init__(self, z=6):
            super().__init__()
            self.enc = nn.Sequential(ConvBlock(1, 8, s=2), ConvBlock(8, 16, s=2), nn.Flatten())
            self.mu, self.logvar = nn.Linear(256, z), nn.Linear(256, z)
            self.fc = nn.Linear(z, 256)
            self.dec = nn.Sequential(nn.Unflatten(1, (16, 4, 4)), nn.ConvTranspose2d(16, 8, 4, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.ConvTranspose2d(8, 1, 4, 2, 1), nn.Sigmoid())

        def forward(self, x):
            h = self.enc(x)
            mu, logvar = self.mu(h), self.logvar(h)
            z = mu + torch.randn_like(mu) * torch.exp(0.5 * logvar) if self.training else mu
            return VAEOut(self.dec(F.relu(self.fc(z))), mu, logvar)

    return Net(), torch.randn(2, 1, 16, 16), [torch.randn(1, 1, 16, 16)]


@network
def dcgan_generator():
    class G(nn.Module):
        def __init__(self, nz=8, ngf=8):
            super().__init__()
            self.main = nn.Sequential(
                nn.ConvTranspose2d(nz, ngf * 4, 4, 1, 0, bias=False), nn.BatchNorm2d(ngf * 4), nn.ReLU(True),
                nn.ConvTranspose2d(ngf * 4, ngf * 2, 4, 2, 1, bias=False), nn.BatchNorm2d(ngf * 2), nn.ReLU(True),
                nn.ConvTranspose2d(ngf * 2, 1, 4, 2, 1, bias=False), nn.Tanh(),
            )

        def forward(self, z):
            return self.main(z[..., None, None] if z.dim() == 2 else z)

    return G(), torch.randn(2, 8), [torch.randn(4, 8), torch.randn(1, 8, 2, 2)]


@network
def inception_aux_in_training():
    class Branches(nn.Module):
        def __init__(self, c):
            super().__init__()
            self.b1, self.b2 = ConvBlock(c, 8, 1), nn.Sequential(ConvBlock(c, 6, 1), ConvBlock(6, 10))
            self.pool = nn.Sequential(nn.AvgPool2d(3, 1, 1), ConvBlock(c, 4, 1))

        def forward(self, x):
            return torch.cat([self.b1(x), self.b2(x), self.pool(x)], 1)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.a, self.b = ConvBlock(3, 8), Branches(8), Branches(22)
            self.aux, self.fc = nn.Linear(22, 5), nn.Linear(22, 5)

        def forward(self, x):
            x = self.a(self.stem(x))
            aux = self.aux(x.mean((2, 3))) if self.training else None
            x = self.fc(self.b(x).mean((2, 3)))
            return (x, aux) if self.training else x

    return Net(), *images()


@network
def early_exit_by_confidence():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = ConvBlock(3, 12), ConvBlock(12, 20)
            self.exit, self.fc = nn.Linear(12, 5), nn.Linear(20, 5)

        def forward(self, x):
            x = self.a(x)
            early = self.exit(x.mean((2, 3)))
            if early.softmax(-1).max() > 0.99:
                return early
            return self.fc(self.b(x).mean((2, 3)))

    return Net(), *images()


@network
def film_conditioned():
    class Net(nn.Module):
        def __init__(self, c=12):
            super().__init__()
            self.conv1, self.conv2 = nn.Conv2d(3, c, 3, padding=1), nn.Conv2d(c, c, 3, padding=1)
            self.bn = nn.BatchNorm2d(c, affine=False)
            self.emb = nn.Embedding(6, 8)
            self.film = nn.Linear(8, 2 * c)
            self.fc = nn.Linear(c, 4)

        def forward(self, image, question):
            gamma, beta = torch.split(self.film(self.emb(question).mean(1)), self.conv2.out_channels, dim=-1)
            h = self.bn(self.conv2(F.relu(self.conv1(image))))
            h = F.relu(gamma.unsqueeze(2).unsqueeze(3).expand_as(h) * h + beta[..., None, None].expand_as(h))
            return self.fc(h.mean(dim=[2, 3]))

    one = lambda n, s, t: {"image": torch.randn(n, 3, s, s), "question": torch.randint(6, (n, t))}  # noqa: E731
    return Net(), one(2, 8, 4), [one(3, 12, 7)]


@network
def octave_two_resolutions():
    class Oct(nn.Module):
        def __init__(self, h, low):
            super().__init__()
            self.hh, self.hl, self.lh, self.ll = nn.Conv2d(h, h, 3, 1, 1), nn.Conv2d(h, low, 3, 1, 1), nn.Conv2d(low, h, 3, 1, 1), nn.Conv2d(low, low, 3, 1, 1)

        def forward(self, pair):
            hi, lo = pair
            up = F.interpolate(self.lh(lo), scale_factor=2)
            return F.relu(self.hh(hi) + up), F.relu(self.ll(lo) + self.hl(F.avg_pool2d(hi, 2)))

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.h, self.l = nn.Conv2d(3, 12, 3, 1, 1), nn.Conv2d(3, 6, 3, 1, 1)
            self.layers = nn.ModuleList(Oct(12, 6) for _ in range(2))
            self.fc = nn.Linear(18, 4)

        def forward(self, x):
            pair = self.h(x), self.l(F.avg_pool2d(x, 2))
            for layer in self.layers:
                pair = layer(pair)
            return self.fc(torch.cat([p.mean((2, 3)) for p in pair], -1))

    return Net(), *images(others=((3, 24, 20),))


@network
def convnext_permuted_norm():
    class Block(nn.Module):
        def __init__(self, dim):
            super().__init__()
            self.dw = nn.Conv2d(dim, dim, 7, padding=3, groups=dim)
            self.norm = nn.LayerNorm(dim, eps=1e-6)
            self.pw1, self.pw2 = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)
            self.gamma = nn.Parameter(0.1 * torch.ones(dim))

        def forward(self, x):
            r = x
            x = self.norm(self.dw(x).permute(0, 2, 3, 1))
            x = self.gamma * self.pw2(F.gelu(self.pw1(x)))
            return r + x.permute(0, 3, 1, 2)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Conv2d(3, 12, 4, 4)
            self.blocks = nn.Sequential(Block(12), Block(12))
            self.norm, self.head = nn.LayerNorm(12), nn.Linear(12, 5)

        def forward(self, x):
            return self.head(self.norm(self.blocks(self.stem(x)).mean([-2, -1])))

    return Net(), *images()


@network
def swin_like_windows():
    class Attn(nn.Module):
        def __init__(self, dim=12, win=4, heads=3):
            super().__init__()
            self.win, self.heads, self.scale = win, heads, (dim // heads) ** -0.5
            self.table = nn.Parameter(torch.randn((2 * win - 1) ** 2, heads))
            c = torch.stack(torch.meshgrid(torch.arange(win), torch.arange(win), indexing="ij")).flatten(1)
            rel = (c[:, :, None] - c[:, None, :]).permute(1, 2, 0) + win - 1
            self.register_buffer("index", rel[..., 0] * (2 * win - 1) + rel[..., 1])
            self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

        def forward(self, x):
            B, N, C = x.shape
            q, k, v = self.qkv(x).reshape(B, N, 3, self.heads, C // self.heads).permute(2, 0, 3, 1, 4)
            a = (q * self.scale) @ k.transpose(-2, -1)
            a = a + self.table[self.index.view(-1)].view(N, N, -1).permute(2, 0, 1).unsqueeze(0)
            return self.proj((a.softmax(-1) @ v).transpose(1, 2).reshape(B, N, C))

    class Net(nn.Module):
        def __init__(self, dim=12, win=4):
            super().__init__()
            self.win = win
            self.embed, self.norm, self.attn = nn.Conv2d(3, dim, 2, 2), nn.LayerNorm(dim), Attn(dim, win)
            self.mlp, self.head = nn.Sequential(nn.Linear(dim, 40), nn.GELU(), nn.Linear(40, dim)), nn.Linear(dim, 5)

        def forward(self, x):
            x = self.embed(x).permute(0, 2, 3, 1)
            B, H, W, C = x.shape
            w = self.win
            s = torch.roll(self.norm(x), (-2, -2), (1, 2))
            s = s.view(B, H // w, w, W // w, w, C).permute(0, 1, 3, 2, 4, 5).reshape(-1, w * w, C)
            s = self.attn(s).view(B, H // w, W // w, w, w, C).permute(0, 1, 3, 2, 4, 5).reshape(B, H, W, C)
            x = x + torch.roll(s, (2, 2), (1, 2))
            return self.head((x + self.mlp(x)).flatten(1, 2).mean(1))

    return Net(), *images(others=((3, 32, 16),))


@network
def vit_with_cls_and_interpolated_positions():
    class Net(nn.Module):
        def __init__(self, dim=24, heads=4, grid=4):
            super().__init__()
            self.patch = nn.Conv2d(3, dim, 4, 4)
            self.cls, self.pos = nn.Parameter(torch.randn(1, 1, dim)), nn.Parameter(torch.randn(1, grid * grid + 1, dim))
            layer = nn.TransformerEncoderLayer(dim, heads, 48, batch_first=True, norm_first=True, activation="gelu")
            self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
            self.grid, self.head = grid, nn.Linear(dim, 5)

        def positions(self, h, w):
            cls, pos = self.pos[:, :1], self.pos[:, 1:]
            if (h, w) == (self.grid, self.grid):
                return self.pos
            pos = pos.reshape(1, self.grid, self.grid, -1).permute(0, 3, 1, 2)
            pos = F.interpolate(pos, size=(h, w), mode="bicubic", align_corners=False)
            return torch.cat([cls, pos.permute(0, 2, 3, 1).reshape(1, h * w, -1)], 1)

        def forward(self, x):
            x = self.patch(x)
            h, w = x.shape[-2:]
            x = x.flatten(2).transpose(1, 2)
            x = torch.cat([self.cls.expand(x.shape[0], -1, -1), x], 1) + self.positions(h, w)
            return self.head(self.encoder(x)[:, 0])

    return Net(), *images(others=((3, 16, 16), (1, 24, 20)))


@network
def mlp_mixer():
    class Block(nn.Module):
        def __init__(self, n, d):
            super().__init__()
            self.n1, self.n2 = nn.LayerNorm(d), nn.LayerNorm(d)
            self.tok = nn.Sequential(nn.Linear(n, 20), nn.GELU(), nn.Linear(20, n))
            self.chan = nn.Sequential(nn.Linear(d, 40), nn.GELU(), nn.Linear(40, d))

        def forward(self, x):
            x = x + self.tok(self.n1(x).transpose(1, 2)).transpose(1, 2)
            return x + self.chan(self.n2(x))

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.patch, self.blocks, self.head = nn.Conv2d(3, 16, 4, 4), nn.Sequential(Block(16, 16), Block(16, 16)), nn.Linear(16, 5)

        def forward(self, x):
            return self.head(self.blocks(self.patch(x).flatten(2).mT).mean(1))

    return Net(), torch.randn(2, 3, 16, 16), [torch.randn(5, 3, 16, 16)]


@network
def cbam_attention():
    class CBAM(nn.Module):
        def __init__(self, c, r=4):
            super().__init__()
            self.mlp = nn.Sequential(nn.Linear(c, c // r), nn.ReLU(), nn.Linear(c // r, c))
            self.spatial = nn.Conv2d(2, 1, 7, padding=3)

        def forward(self, x):
            b, c, *_ = x.shape
            g = torch.sigmoid(self.mlp(x.mean((2, 3))) + self.mlp(x.amax((2, 3)))).view(b, c, 1, 1)
            x = x * g
            s = torch.cat([x.mean(1, keepdim=True), x.max(1, keepdim=True)[0]], 1)
            return x * torch.sigmoid(self.spatial(s))

    return nn.Sequential(ConvBlock(3, 16), CBAM(16), ConvBlock(16, 24), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 4)), *images()


@network
def deeplab_dilated_pyramid():
    class Net(nn.Module):
        def __init__(self, c=16):
            super().__init__()
            self.body = nn.Sequential(ConvBlock(3, 12, s=2), ConvBlock(12, c))
            self.rates = nn.ModuleList([nn.Conv2d(c, 10, 1)] + [nn.Conv2d(c, 10, 3, padding=r, dilation=r) for r in (2, 4)])
            self.pool, self.project = nn.Conv2d(c, 10, 1), ConvBlock(40, 14, 1)
            self.low, self.cls = nn.Conv2d(12, 6, 1), nn.Conv2d(20, 3, 1)

        def forward(self, x):
            low = self.body[0](x)
            f = self.body[1](low)
            p = self.pool(F.adaptive_avg_pool2d(f, 1)).expand(-1, -1, *f.shape[2:])
            f = self.project(torch.cat([r(f) for r in self.rates] + [p], 1))
            y = self.cls(torch.cat([self.low(low), f], 1))
            return SimpleNamespace(out=F.interpolate(y, x.shape[2:], mode="bilinear", align_corners=True))

    return Net(), *images()


@network
def hourglass_recursive():
    class Hourglass(nn.Module):
        def __init__(self, depth, c):
            super().__init__()
            self.skip, self.down = ConvBlock(c, c), ConvBlock(c, c)
            self.inner = Hourglass(depth - 1, c) if depth > 1 else ConvBlock(c, c)
            self.up = ConvBlock(c, c)

        def forward(self, x):
            y = self.up(self.inner(self.down(F.max_pool2d(x, 2))))
            return self.skip(x) + F.interpolate(y, scale_factor=2, mode="nearest")

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = ConvBlock(3, 12)
            self.stacks = nn.ModuleList(Hourglass(2, 12) for _ in range(2))
            self.heads = nn.ModuleList(nn.Conv2d(12, 5, 1) for _ in range(2))
            self.back = nn.ModuleList([nn.Conv2d(5, 12, 1)])

        def forward(self, x):
            x, outs = self.stem(x), []
            for i, stack in enumerate(self.stacks):
                y = stack(x)
                outs.append(self.heads[i](y))
                if i < len(self.back):
                    x = x + y + self.back[i](outs[-1])
            return outs

    return Net(), *images(others=((3, 24, 20),))


@network
def style_modulated_convolution():
    class ModConv(nn.Module):
        def __init__(self, cin, cout, s=8):
            super().__init__()
            self.weight, self.affine = nn.Parameter(torch.randn(1, cout, cin, 3, 3)), nn.Linear(s, cin)

        def forward(self, x, s):
            b, c, h, w = x.shape
            weight = self.weight * self.affine(s).view(b, 1, c, 1, 1)
            weight = weight * torch.rsqrt(weight.pow(2).sum([2, 3, 4], keepdim=True) + 1e-8)
            out = F.conv2d(x.reshape(1, b * c, h, w), weight.view(b * weight.shape[1], c, 3, 3), padding=1, groups=b)
            return out.view(b, -1, h, w)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.const = nn.Parameter(torch.randn(1, 12, 4, 4))
            self.map = nn.Sequential(nn.Linear(6, 8), nn.LeakyReLU(0.2), nn.Linear(8, 8))
            self.c1, self.c2, self.rgb = ModConv(12, 10), ModConv(10, 8), nn.Conv2d(8, 3, 1)

        def forward(self, z):
            s = self.map(F.normalize(z))
            x = self.const.repeat(z.shape[0], 1, 1, 1)
            x = F.leaky_relu(self.c1(x, s), 0.2)
            x = F.leaky_relu(self.c2(F.interpolate(x, scale_factor=2), s), 0.2)
            return self.rgb(x)

    return Net(), torch.randn(2, 6), [torch.randn(3, 6)]


@network
def temporal_shift_video():
    class Net(nn.Module):
        def __init__(self, frames=4):
            super().__init__()
            self.T, self.c1, self.c2, self.fc = frames, ConvBlock(3, 16), ConvBlock(16, 24), nn.Linear(24, 5)

        def shift(self, x):
            nt, c, h, w = x.size()
            x = x.view(nt // self.T, self.T, c, h, w)
            fold = c // 8
            out = torch.zeros_like(x)
            out[:, :-1, :fold] = x[:, 1:, :fold]
            out[:, 1:, fold : 2 * fold] = x[:, :-1, fold : 2 * fold]
            out[:, :, 2 * fold :] = x[:, :, 2 * fold :]
            return out.view(nt, c, h, w)

        def forward(self, v):
            x = v.flatten(0, 1)
            x = self.c2(self.shift(self.c1(x))).mean((2, 3))
            return self.fc(x.view(-1, self.T, x.shape[-1]).mean(1))

    return Net(), torch.randn(2, 4, 3, 8, 8), [torch.randn(1, 4, 3, 10, 6)]


@network
def slowfast_3d():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.slow, self.fast = nn.Conv3d(3, 16, (1, 3, 3), padding=(0, 1, 1)), nn.Conv3d(3, 4, 3, padding=1)
            self.lateral = nn.Conv3d(4, 8, (5, 1, 1), stride=(4, 1, 1), padding=(2, 0, 0))
            self.bn, self.s2, self.fc = nn.BatchNorm3d(24), nn.Conv3d(24, 20, 3, padding=1), nn.Linear(24, 5)

        def forward(self, clip):
            f = F.relu(self.fast(clip))
            s = torch.cat([F.relu(self.slow(clip[:, :, ::4])), self.lateral(f)], 1)
            s = F.relu(self.s2(self.bn(s)))
            return self.fc(torch.cat([s.mean((2, 3, 4)), f.mean((2, 3, 4))], 1))

    return Net(), torch.randn(1, 3, 8, 6, 6), [torch.randn(2, 3, 12, 6, 8)]


@network
def spectral_norm_discriminator():
    sn = nn.utils.parametrizations.spectral_norm

    class D(nn.Module):
        def __init__(self):
            super().__init__()
            self.c1, self.c2 = sn(nn.Conv2d(3, 12, 4, 2, 1)), sn(nn.Conv2d(12, 16, 4, 2, 1))
            self.fc, self.emb = sn(nn.Linear(16, 1)), nn.Embedding(5, 16)

        def forward(self, x, y):
            h = F.leaky_relu(self.c2(F.leaky_relu(self.c1(x), 0.2)), 0.2).sum([2, 3])
            return self.fc(h) + (self.emb(y) * h).sum(1, keepdim=True)

    return D(), (torch.randn(2, 3, 16, 16), torch.tensor([0, 3])), [(torch.randn(3, 3, 20, 16), torch.tensor([1, 2, 4]))]


# -------------------------------------------------------------------------------------------------- text, sequences


@dataclass
class GPTConfig:
    vocab_size: int = 40
    block_size: int = 16
    n_layer: int = 2
    n_head: int = 4
    n_embd: int = 24
    extras: dict[str, Any] = field(default_factory=dict)


@network
def nano_gpt_tied_with_cache_of_masks():
    class Attention(nn.Module):
        def __init__(self, c):
            super().__init__()
            self.c_attn, self.c_proj = nn.Linear(c.n_embd, 3 * c.n_embd), nn.Linear(c.n_embd, c.n_embd)
            self.n_head, self.n_embd = c.n_head, c.n_embd
            self.register_buffer("bias", torch.tril(torch.ones(c.block_size, c.block_size)).view(1, 1, c.block_size, c.block_size))

        def forward(self, x):
            B, T, C = x.size()
            q, k, v = self.c_attn(x).split(self.n_embd, dim=2)
            q, k, v = (t.view(B, T, self.n_head, C // self.n_head).transpose(1, 2) for t in (q, k, v))
            att = (q @ k.transpose(-2, -1)) * (1.0 / math.sqrt(k.size(-1)))
            att = att.masked_fill(self.bias[:, :, :T, :T] == 0, float("-inf")).softmax(-1)
            return self.c_proj((att @ v).transpose(1, 2).contiguous().view(B, T, C))

    class Block(nn.Module):
        def __init__(self, c):
            super().__init__()
            self.ln_1, self.attn, self.ln_2 = nn.LayerNorm(c.n_embd), Attention(c), nn.LayerNorm(c.n_embd)
            self.mlp = nn.ModuleDict({"c_fc": nn.Linear(c.n_embd, 4 * c.n_embd), "c_proj": nn.Linear(4 * c.n_embd, c.n_embd)})

        def forward(self, x):
            x = x + self.attn(self.ln_1(x))
            return x + self.mlp["c_proj"](F.gelu(self.mlp["c_fc"](self.ln_2(x))))

    class GPT(nn.Module):
        def __init__(self, c):
            super().__init__()
            self.config = c
            self.transformer = nn.ModuleDict(dict(wte=nn.Embedding(c.vocab_size, c.n_embd), wpe=nn.Embedding(c.block_size, c.n_embd), h=nn.ModuleList(Block(c) for _ in range(c.n_layer)), ln_f=nn.LayerNorm(c.n_embd)))
            self.lm_head = nn.Linear(c.n_embd, c.vocab_size, bias=False)
            self.transformer["wte"].weight = self.lm_head.weight

        def forward(self, idx, targets=None):
            t = idx.size(1)
            assert t <= self.config.block_size
            x = self.transformer.wte(idx) + self.transformer.wpe(torch.arange(0, t, device=idx.device))
            for block in self.transformer.h:
                x = block(x)
            logits = self.lm_head(self.transformer.ln_f(x))
            loss = None if targets is None else F.cross_entropy(logits.view(-1, logits.size(-1)), targets.view(-1))
            return logits, loss

    return GPT(GPTConfig()), *tokens(others=((1, 3), (3, 16)))


@network
def llama_rope_gqa_swiglu():
    class RMSNorm(nn.Module):
        def __init__(self, d):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(d))

        def forward(self, x):
            return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.weight

    class Layer(nn.Module):
        def __init__(self, d=24, h=6, kv=2):
            super().__init__()
            self.h, self.kv, self.hd = h, kv, d // h
            self.wq, self.wk, self.wv, self.wo = nn.Linear(d, d, bias=False), nn.Linear(d, kv * self.hd, bias=False), nn.Linear(d, kv * self.hd, bias=False), nn.Linear(d, d, bias=False)
            self.w1, self.w2, self.w3 = nn.Linear(d, 64, bias=False), nn.Linear(64, d, bias=False), nn.Linear(d, 64, bias=False)
            self.n1, self.n2 = RMSNorm(d), RMSNorm(d)

        def rope(self, x, cos, sin):
            a, b = x.float().chunk(2, -1)
            return torch.cat([a * cos - b * sin, a * sin + b * cos], -1)

        def forward(self, x, cos, sin):
            B, T, _ = x.shape
            y = self.n1(x)
            q = self.rope(self.wq(y).view(B, T, self.h, self.hd).transpose(1, 2), cos, sin)
            k = self.rope(self.wk(y).view(B, T, self.kv, self.hd).transpose(1, 2), cos, sin)
            v = self.wv(y).view(B, T, self.kv, self.hd).transpose(1, 2)
            k, v = (t.repeat_interleave(self.h // self.kv, dim=1) for t in (k, v))
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(B, T, -1)
            x = x + self.wo(y)
            y = self.n2(x)
            return x + self.w2(F.silu(self.w1(y)) * self.w3(y))

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.tok, self.layers, self.norm, self.out = nn.Embedding(40, 24), nn.ModuleList(Layer() for _ in range(2)), RMSNorm(24), nn.Linear(24, 40, bias=False)
            inv = 1.0 / 10000 ** (torch.arange(0, 4, 2).float() / 4)
            t = torch.outer(torch.arange(32).float(), inv)
            self.register_buffer("cos", t.cos(), persistent=False)
            self.register_buffer("sin", t.sin(), persistent=False)

        def forward(self, ids):
            x, T = self.tok(ids), ids.shape[1]
            for layer in self.layers:
                x = layer(x, self.cos[:T], self.sin[:T])
            return self.out(self.norm(x))

    return Net(), *tokens(others=((1, 5), (3, 25)))


@network
def alibi_decoder():
    class Net(nn.Module):
        def __init__(self, d=24, h=4):
            super().__init__()
            self.h, self.emb, self.q, self.k, self.v, self.o = h, nn.Embedding(40, d), nn.Linear(d, d), nn.Linear(d, d), nn.Linear(d, d), nn.Linear(d, d)
            self.register_buffer("slopes", torch.tensor([2.0 ** (-8 * (i + 1) / h) for i in range(h)]))
            self.norm, self.fc = nn.LayerNorm(d), nn.Linear(d, 40)

        def forward(self, ids):
            x = self.emb(ids)
            B, T, D = x.shape
            sp = lambda t: t.reshape(B, T, self.h, -1).permute(0, 2, 1, 3)  # noqa: E731
            q, k, v = sp(self.q(x)), sp(self.k(x)), sp(self.v(x))
            dist = torch.arange(T)[None, :] - torch.arange(T)[:, None]
            bias = self.slopes[:, None, None] * dist[None].clamp(max=0)
            s = q @ k.mT / q.shape[-1] ** 0.5 + bias
            s = s.masked_fill(dist > 0, torch.finfo(s.dtype).min)
            y = (s.softmax(-1) @ v).permute(0, 2, 1, 3).reshape(B, T, -1)
            return self.fc(self.norm(x + self.o(y)))

    return Net(), *tokens()


@network
def t5_relative_buckets_encoder_decoder():
    class Attn(nn.Module):
        def __init__(self, d=16, h=4, rel=False):
            super().__init__()
            self.h, self.q, self.k, self.v, self.o = h, *(nn.Linear(d, d, bias=False) for _ in range(4))
            self.rel = nn.Embedding(8, h) if rel else None

        def forward(self, x, y, causal=False):
            B, T, _ = x.shape
            S = y.shape[1]
            q, k, v = (p(z).view(B, -1, self.h, p.out_features // self.h).transpose(1, 2) for p, z in ((self.q, x), (self.k, y), (self.v, y)))
            s = torch.matmul(q, k.transpose(3, 2))
            if self.rel is not None:
                rel = torch.arange(S)[None, :] - torch.arange(T)[:, None]
                s = s + self.rel(rel.abs().clamp(max=7)).permute(2, 0, 1).unsqueeze(0)
            if causal:
                s = s + torch.triu(torch.full((T, S), -1e9), 1)
            return self.o(torch.matmul(s.softmax(-1), v).transpose(1, 2).flatten(2))

    class Net(nn.Module):
        def __init__(self, d=16):
            super().__init__()
            self.shared = nn.Embedding(40, d)
            self.enc, self.dec, self.cross = Attn(d, rel=True), Attn(d, rel=True), Attn(d)
            self.ff = nn.Sequential(nn.Linear(d, 48, bias=False), nn.ReLU(), nn.Linear(48, d, bias=False))

        def forward(self, src, tgt):
            m, y = self.shared(src), self.shared(tgt)
            m = m + self.enc(m, m)
            y = y + self.dec(y, y, causal=True)
            y = y + self.cross(y, m)
            y = y + self.ff(y)
            return y @ self.shared.weight.t()

    pair = lambda n, s, t: (torch.randint(40, (n, s)), torch.randint(40, (n, t)))  # noqa: E731
    return Net(), pair(2, 7, 5), [pair(1, 4, 9), pair(3, 12, 2)]


@network
def encoder_with_padding_mask():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.emb = nn.Embedding(40, 24, padding_idx=0)
            self.pos = nn.Parameter(torch.randn(1, 64, 24) * 0.02)
            self.enc = nn.TransformerEncoder(nn.TransformerEncoderLayer(24, 4, 40, batch_first=True), 2)
            self.fc = nn.Linear(24, 3)

        def forward(self, ids, attention_mask=None):
            x = self.emb(ids) + self.pos[:, : ids.size(1)]
            pad = None if attention_mask is None else attention_mask == 0
            x = self.enc(x, src_key_padding_mask=pad)
            if attention_mask is None:
                return self.fc(x.mean(1))
            m = attention_mask.unsqueeze(-1).float()
            return self.fc((x * m).sum(1) / m.sum(1))

    mask = torch.tensor([[1] * 12, [1] * 7 + [0] * 5])
    return Net(), torch.randint(1, 40, (2, 10)), [torch.randint(1, 40, (3, 30)), (torch.randint(1, 40, (2, 12)), mask)]


@network
def lstm_classifier_last_state():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.emb = nn.Embedding(40, 16)
            self.lstm = nn.LSTM(16, 20, num_layers=2, bidirectional=True, batch_first=True, dropout=0.2)
            self.fc1, self.fc2 = nn.Linear(40, 24), nn.Linear(24, 3)

        def forward(self, x):
            self.lstm.flatten_parameters()
            _, (h, _c) = self.lstm(self.emb(x))
            return self.fc2(F.relu(self.fc1(torch.cat((h[-2], h[-1]), dim=1))))

    return Net(), *tokens()


@network
def gru_packed_speech():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Sequential(nn.Conv1d(8, 16, 5, stride=2, padding=2), nn.BatchNorm1d(16), nn.ReLU())
            self.rnn, self.fc = nn.GRU(16, 12, batch_first=True, bidirectional=True), nn.Linear(24, 6)

        def forward(self, x, lengths):
            x = self.conv(x).permute(0, 2, 1)
            lengths = torch.div(lengths + 1, 2, rounding_mode="floor")
            p = nn.utils.rnn.pack_padded_sequence(x, lengths.cpu(), batch_first=True, enforce_sorted=False)
            y, _ = nn.utils.rnn.pad_packed_sequence(self.rnn(p)[0], batch_first=True, total_length=x.shape[1])
            return self.fc(y).log_softmax(-1), lengths

    return Net(), (torch.randn(2, 8, 14), torch.tensor([14, 9])), [(torch.randn(3, 8, 20), torch.tensor([8, 20, 3]))]


@network
def seq2seq_additive_attention():
    class Net(nn.Module):
        def __init__(self, h=16):
            super().__init__()
            self.es, self.et = nn.Embedding(40, 12), nn.Embedding(40, 12)
            self.enc, self.cell = nn.GRU(12, h, batch_first=True), nn.GRUCell(12 + h, h)
            self.wa, self.ua, self.va = nn.Linear(h, 10), nn.Linear(h, 10), nn.Linear(10, 1)
            self.out = nn.Linear(2 * h, 40)

        def forward(self, src, tgt):
            m, h = self.enc(self.es(src))
            h, outs = h.squeeze(0), []
            keys = self.ua(m)
            for t in range(tgt.size(1)):
                e = self.va(torch.tanh(self.wa(h).unsqueeze(1) + keys))
                ctx = (e.softmax(1) * m).sum(1)
                h = self.cell(torch.cat([self.et(tgt[:, t]), ctx], -1), h)
                outs.append(self.out(torch.cat([h, ctx], -1)))
            return torch.stack(outs, 1)

    pair = lambda n, s, t: (torch.randint(40, (n, s)), torch.randint(40, (n, t)))  # noqa: E731
    return Net(), pair(2, 6, 3), [pair(3, 9, 5)]


@network
def tcn_weight_norm_chomp():
    wn = nn.utils.parametrizations.weight_norm

    class Chomp(nn.Module):
        def __init__(self, n):
            super().__init__()
            self.n = n

        def forward(self, x):
            return x[:, :, : -self.n].contiguous()

    class Block(nn.Module):
        def __init__(self, i, o, d):
            super().__init__()
            self.net = nn.Sequential(wn(nn.Conv1d(i, o, 3, padding=2 * d, dilation=d)), Chomp(2 * d), nn.ReLU(), nn.Dropout(0.1), wn(nn.Conv1d(o, o, 3, padding=2 * d, dilation=d)), Chomp(2 * d), nn.ReLU())
            self.down = nn.Conv1d(i, o, 1) if i != o else None

        def forward(self, x):
            return F.relu(self.net(x) + (x if self.down is None else self.down(x)))

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.tcn, self.fc = nn.Sequential(Block(4, 12, 1), Block(12, 12, 2), Block(12, 16, 4)), nn.Linear(16, 3)

        def forward(self, x):
            return self.fc(self.tcn(x)[:, :, -1])

    return Net(), torch.randn(2, 4, 20), [torch.randn(3, 4, 33)]


@network
def wavenet_gated_skips():
    class Net(nn.Module):
        def __init__(self, r=12, s=16, layers=3):
            super().__init__()
            self.start = nn.Conv1d(1, r, 1)
            self.filt, self.gate = (nn.ModuleList(nn.Conv1d(r, r, 2, dilation=2**i) for i in range(layers)) for _ in range(2))
            self.res, self.skip = nn.ModuleList(nn.Conv1d(r, r, 1) for _ in range(layers)), nn.ModuleList(nn.Conv1d(r, s, 1) for _ in range(layers))
            self.e1, self.e2 = nn.Conv1d(s, 20, 1), nn.Conv1d(20, 8, 1)

        def forward(self, x):
            x, skips = self.start(x), 0
            for f, g, r, s in zip(self.filt, self.gate, self.res, self.skip):
                z = torch.tanh(f(x)) * torch.sigmoid(g(x))
                sk = s(z)
                skips = sk if isinstance(skips, int) else skips[..., -sk.size(-1) :] + sk
                x = r(z) + x[..., -z.size(-1) :]
            return self.e2(F.relu(self.e1(F.relu(skips))))

    return Net(), torch.randn(2, 1, 24), [torch.randn(1, 1, 40)]


@network
def conformer_block():
    class Net(nn.Module):
        def __init__(self, d=16):
            super().__init__()
            self.sub = nn.Conv1d(8, d, 3, 2, 1)
            self.ff1 = nn.Sequential(nn.LayerNorm(d), nn.Linear(d, 40), nn.SiLU(), nn.Linear(40, d))
            self.attn, self.na = nn.MultiheadAttention(d, 4, batch_first=True), nn.LayerNorm(d)
            self.pw1, self.dw, self.bn, self.pw2 = nn.Conv1d(d, 2 * d, 1), nn.Conv1d(d, d, 5, padding=2, groups=d), nn.BatchNorm1d(d), nn.Conv1d(d, d, 1)
            self.out = nn.Linear(d, 9)

        def forward(self, x):
            x = self.sub(x).transpose(1, 2)
            x = x + 0.5 * self.ff1(x)
            y = self.na(x)
            x = x + self.attn(y, y, y, need_weights=False)[0]
            c = self.pw2(F.silu(self.bn(self.dw(F.glu(self.pw1(x.mT), dim=1))))).mT
            return self.out(x + c).log_softmax(-1)

    return Net(), torch.randn(2, 8, 20), [torch.randn(3, 8, 31)]


@network
def memory_kv_cache_buffer():
    class Net(nn.Module):
        def __init__(self, d=16, maxlen=24):
            super().__init__()
            self.emb, self.q, self.k, self.v, self.o = nn.Embedding(40, d), nn.Linear(d, d), nn.Linear(d, d), nn.Linear(d, d), nn.Linear(d, 40)
            self.register_buffer("kc", torch.zeros(4, maxlen, d))
            self.register_buffer("vc", torch.zeros(4, maxlen, d))

        def forward(self, ids, start: int = 0):
            x = self.emb(ids)
            B, T, _ = x.shape
            k, v = self.kc.clone(), self.vc.clone()
            k[:B, start : start + T] = self.k(x)
            v[:B, start : start + T] = self.v(x)
            s = (self.q(x) @ k[:B, : start + T].mT) / 4.0
            return self.o(s.softmax(-1) @ v[:B, : start + T])

    return Net(), torch.randint(40, (2, 6)), [(torch.randint(40, (3, 15)),), (torch.randint(40, (2, 4)), 7)]


@network
def linear_attention_fast_weights():
    class Net(nn.Module):
        def __init__(self, d=16, h=2):
            super().__init__()
            self.h, self.inp, self.qkv, self.out = h, nn.Linear(6, d), nn.Linear(d, 3 * d), nn.Linear(d, 4)

        def forward(self, x):
            x = self.inp(x)
            B, T, D = x.shape
            q, k, v = (t.view(B, T, self.h, -1) for t in self.qkv(x).chunk(3, -1))
            q, k = F.elu(q) + 1, F.elu(k) + 1
            kv = torch.einsum("bthd,bthe->bhde", k, v)
            z = 1 / torch.einsum("bthd,bhd->bth", q, k.sum(1))
            return self.out(torch.einsum("bthd,bhde,bth->bthe", q, kv, z).reshape(B, T, -1))

    return Net(), torch.randn(2, 9, 6), [torch.randn(1, 14, 6)]


@network
def state_space_scan():
    class Net(nn.Module):
        def __init__(self, d=12, n=4):
            super().__init__()
            self.inp, self.conv = nn.Linear(6, 2 * d), nn.Conv1d(d, d, 3, padding=2, groups=d)
            self.x_proj, self.dt = nn.Linear(d, 2 * n + 2), nn.Linear(2, d)
            self.A_log, self.D = nn.Parameter(torch.log(torch.arange(1, n + 1).float()).repeat(d, 1)), nn.Parameter(torch.ones(d))
            self.n, self.out = n, nn.Linear(d, 5)

        def forward(self, u):
            x, z = self.inp(u).chunk(2, -1)
            L = x.shape[1]
            x = F.silu(self.conv(x.transpose(1, 2))[..., :L].transpose(1, 2))
            dt, B, C = self.x_proj(x).split([2, self.n, self.n], dim=-1)
            dt = F.softplus(self.dt(dt))
            A = -torch.exp(self.A_log)
            dA = torch.exp(dt.unsqueeze(-1) * A)
            dBx = dt.unsqueeze(-1) * B.unsqueeze(2) * x.unsqueeze(-1)
            h, ys = torch.zeros_like(dBx[:, 0]), []
            for t in range(L):
                h = dA[:, t] * h + dBx[:, t]
                ys.append((h * C[:, t].unsqueeze(1)).sum(-1))
            y = torch.stack(ys, 1) + self.D * x
            return self.out(y * F.silu(z))

    return Net(), torch.randn(2, 7, 6), [torch.randn(3, 11, 6)]


@network
def hierarchical_attention_pooling():
    class Pool(nn.Module):
        def __init__(self, d):
            super().__init__()
            self.proj, self.ctx = nn.Linear(d, d), nn.Parameter(torch.randn(d))

        def forward(self, x):
            a = torch.tanh(self.proj(x)).matmul(self.ctx).softmax(1)
            return (a.unsqueeze(-1) * x).sum(1)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.emb, self.w, self.wp = nn.Embedding(40, 12), nn.GRU(12, 8, batch_first=True, bidirectional=True), Pool(16)
            self.s, self.sp, self.fc = nn.GRU(16, 10, batch_first=True), Pool(10), nn.Linear(10, 3)

        def forward(self, doc):
            B, S, W = doc.shape
            w = self.wp(self.w(self.emb(doc.view(-1, W)))[0]).view(B, S, -1)
            return self.fc(self.sp(self.s(w)[0]))

    return Net(), torch.randint(40, (2, 3, 5)), [torch.randint(40, (1, 4, 7))]


@network
def crnn_ctc():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.cnn = nn.Sequential(ConvBlock(1, 8), nn.MaxPool2d(2), ConvBlock(8, 16), nn.MaxPool2d((2, 1)))
            self.rnn = nn.LSTM(16 * 4, 20, bidirectional=True)
            self.emb = nn.Linear(40, 11)

        def forward(self, x):
            c = self.cnn(x)
            b, ch, h, w = c.size()
            c = c.reshape(b, ch * h, w).permute(2, 0, 1)
            r, _ = self.rnn(c)
            T, b, h = r.size()
            return self.emb(r.view(T * b, h)).view(T, b, -1).log_softmax(2)

    return Net(), torch.randn(2, 1, 16, 24), [torch.randn(3, 1, 16, 40)]


# ------------------------------------------------------------------------------------- tables, sets, graphs, others


@network
def wide_and_deep_recommender():
    class Net(nn.Module):
        def __init__(self, fields=(5, 7, 9), d=6):
            super().__init__()
            self.emb = nn.ModuleList(nn.Embedding(n, d) for n in fields)
            self.wide = nn.ModuleList(nn.Embedding(n, 1) for n in fields)
            self.bn = nn.BatchNorm1d(4)
            self.deep = nn.Sequential(nn.Linear(d * len(fields) + 4, 32), nn.ReLU(), nn.BatchNorm1d(32), nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 1))

        def forward(self, cat, num):
            e = torch.cat([m(cat[:, i]) for i, m in enumerate(self.emb)] + [self.bn(num)], 1)
            w = sum(m(cat[:, i]) for i, m in enumerate(self.wide))
            return torch.sigmoid(self.deep(e) + w).squeeze(1)

    row = lambda n: (torch.randint(5, (n, 3)), torch.randn(n, 4))  # noqa: E731
    return Net(), row(4), [row(1), row(9)]


@network
def dlrm_dot_interactions():
    class Net(nn.Module):
        def __init__(self, d=8):
            super().__init__()
            self.bot = nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, d), nn.ReLU())
            self.emb = nn.ModuleList(nn.EmbeddingBag(10, d, mode="sum") for _ in range(2))
            self.top = nn.Sequential(nn.Linear(d + 3, 12), nn.ReLU(), nn.Linear(12, 1))

        def forward(self, dense, a, b):
            x = self.bot(dense)
            T = torch.stack([x, self.emb[0](a), self.emb[1](b)], 1)
            Z = torch.bmm(T, T.transpose(1, 2))
            li, lj = torch.tril_indices(3, 3, -1)
            return self.top(torch.cat([x, Z[:, li, lj]], 1))

    row = lambda n: (torch.randn(n, 5), torch.randint(10, (n, 3)), torch.randint(10, (n, 2)))  # noqa: E731
    return Net(), row(4), [row(3)]


@network
def factorisation_machine():
    class Net(nn.Module):
        def __init__(self, n=12, k=8):
            super().__init__()
            self.V, self.lin = nn.Parameter(torch.randn(n, k)), nn.Linear(n, 1)

        def forward(self, x):
            a = torch.mm(x, self.V).pow(2).sum(1, keepdim=True)
            b = torch.mm(x.pow(2), self.V.pow(2)).sum(1, keepdim=True)
            return 0.5 * (a - b) + self.lin(x)

    return Net(), torch.randn(4, 12), [torch.randn(7, 12)]


@network
def tab_transformer_heads_dict():
    class Net(nn.Module):
        def __init__(self, d=16):
            super().__init__()
            self.emb, self.col = nn.Embedding(30, d), nn.Parameter(torch.randn(4, d))
            self.att = nn.MultiheadAttention(d, 4, batch_first=True)
            self.norm = nn.LayerNorm(d)
            self.heads = nn.ModuleDict({"ctr": nn.Linear(4 * d, 1), "cvr": nn.Sequential(nn.Linear(4 * d, 20), nn.ReLU(), nn.Linear(20, 1))})

        def forward(self, x):
            h = self.emb(x) + self.col
            h = self.norm(h + self.att(h, h, h)[0]).flatten(1)
            return {name: head(h).squeeze(-1) for name, head in self.heads.items()}

    return Net(), torch.randint(30, (3, 4)), [torch.randint(30, (5, 4))]


@network
def task_routed_heads():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.trunk = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 24), nn.ReLU())
            self.heads = nn.ModuleDict({t: nn.Linear(24, n) for t, n in (("a", 3), ("b", 5), ("c", 1))})

        def forward(self, x, task="a"):
            return self.heads[task](self.trunk(x))

    return Net(), (torch.randn(4, 8), "a"), [(torch.randn(3, 8), "b"), (torch.randn(2, 8), "c")]


@network
def stochastic_depth_by_index():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.inp = nn.Linear(8, 20)
            self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(20, 28), nn.ReLU(), nn.Linear(28, 20)) for _ in range(4))
            self.out = nn.Linear(20, 3)

        def forward(self, x, depth: int = 4):
            x = self.inp(x)
            for block in self.blocks[:depth]:
                x = x + block(x)
            return self.out(x)

    return Net(), (torch.randn(4, 8), 2), [(torch.randn(3, 8), 4), (torch.randn(3, 8), 1)]


@network
def deep_sets_masked():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.phi = nn.Sequential(nn.Linear(4, 24), nn.ELU(), nn.Linear(24, 20))
            self.rho = nn.Sequential(nn.Linear(60, 16), nn.ELU(), nn.Linear(16, 2))

        def forward(self, x, mask=None):
            h = self.phi(x)
            if mask is not None:
                h = h.masked_fill(~mask.unsqueeze(-1), 0.0)
            return self.rho(torch.cat([h.sum(1), h.max(1).values, h.mean(1)], -1))

    return Net(), torch.randn(2, 5, 4), [torch.randn(3, 9, 4), (torch.randn(2, 6, 4), torch.rand(2, 6) > 0.3)]


@network
def set_transformer_inducing_points():
    class MAB(nn.Module):
        def __init__(self, d, h=4):
            super().__init__()
            self.h, self.q, self.k, self.v, self.o = h, nn.Linear(d, d), nn.Linear(d, d), nn.Linear(d, d), nn.Linear(d, d)

        def forward(self, Q, K):
            Q, K, V = self.q(Q), self.k(K), self.v(K)
            s = Q.size(2) // self.h
            Q_, K_, V_ = (torch.cat(t.split(s, 2), 0) for t in (Q, K, V))
            A = torch.softmax(Q_.bmm(K_.transpose(1, 2)) / math.sqrt(V.size(2)), 2)
            O = torch.cat((Q_ + A.bmm(V_)).split(Q.size(0), 0), 2)  # noqa: E741
            return O + F.relu(self.o(O))

    class Net(nn.Module):
        def __init__(self, d=16):
            super().__init__()
            self.inp, self.I = nn.Linear(3, d), nn.Parameter(torch.randn(1, 5, d))
            self.m0, self.m1, self.S, self.pma = MAB(d), MAB(d), nn.Parameter(torch.randn(1, 1, d)), MAB(d)
            self.fc = nn.Linear(d, 4)

        def forward(self, X):
            X = self.inp(X)
            H = self.m0(self.I.repeat(X.size(0), 1, 1), X)
            X = self.m1(X, H)
            return self.fc(self.pma(self.S.repeat(X.size(0), 1, 1), X).squeeze(1))

    return Net(), torch.randn(2, 6, 3), [torch.randn(3, 11, 3)]


@network
def pointnet_with_transform():
    class Net(nn.Module):
        def __init__(self, k=4):
            super().__init__()
            self.stn = nn.Sequential(nn.Conv1d(3, 12, 1), nn.ReLU(), nn.AdaptiveMaxPool1d(1), nn.Flatten(), nn.Linear(12, 9))
            self.c1, self.c2, self.b1, self.b2 = nn.Conv1d(3, 16, 1), nn.Conv1d(16, 32, 1), nn.BatchNorm1d(16), nn.BatchNorm1d(32)
            self.seg = nn.Sequential(nn.Conv1d(48, 20, 1), nn.ReLU(), nn.Conv1d(20, k, 1))

        def forward(self, x):
            n = x.size(2)
            t = self.stn(x).view(-1, 3, 3) + torch.eye(3).view(1, 3, 3)
            x = torch.bmm(x.transpose(2, 1), t).transpose(2, 1)
            p = F.relu(self.b1(self.c1(x)))
            g = torch.max(self.b2(self.c2(p)), 2, keepdim=True)[0].view(-1, 32, 1).repeat(1, 1, n)
            return self.seg(torch.cat([g, p], 1)).transpose(2, 1).contiguous(), t

    return Net(), torch.randn(2, 3, 10), [torch.randn(3, 3, 17)]


@network
def graph_convolution_dense():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.w1, self.w2 = nn.Parameter(torch.randn(6, 20)), nn.Parameter(torch.randn(20, 12))
            self.b1, self.fc = nn.Parameter(torch.zeros(20)), nn.Linear(12, 3)

        def forward(self, x, adj):
            deg = adj.sum(-1, keepdim=True).clamp(min=1)
            h = F.relu(adj @ (x @ self.w1) / deg + self.b1)
            h = F.relu(torch.matmul(adj, torch.matmul(h, self.w2)) / deg)
            return self.fc(h)

    graph = lambda n: (torch.randn(n, 6), (torch.rand(n, n) > 0.5).float())  # noqa: E731
    return Net(), graph(7), [graph(12)]


@network
def graph_attention_edges():
    class Net(nn.Module):
        def __init__(self, h=3, d=6):
            super().__init__()
            self.h, self.d, self.W = h, d, nn.Linear(5, h * d, bias=False)
            self.a_src, self.a_dst = nn.Parameter(torch.randn(1, h, d)), nn.Parameter(torch.randn(1, h, d))
            self.out = nn.Linear(h * d, 4)

        def forward(self, x, edges):
            n = x.size(0)
            z = self.W(x).view(n, self.h, self.d)
            s, t = edges
            e = F.leaky_relu((z * self.a_src).sum(-1)[s] + (z * self.a_dst).sum(-1)[t], 0.2).exp()
            norm = torch.zeros(n, self.h).index_add_(0, t, e)
            a = (e / (norm[t] + 1e-9)).unsqueeze(-1)
            y = torch.zeros(n, self.h, self.d).index_add_(0, t, a * z[s])
            return self.out(F.elu(y.flatten(1)))

    graph = lambda n, m: (torch.randn(n, 5), torch.randint(n, (2, m)))  # noqa: E731
    return Net(), graph(6, 14), [graph(9, 20)]


@network
def mixture_of_experts_top1_dense():
    class Net(nn.Module):
        def __init__(self, e=3, d=12, h=20):
            super().__init__()
            self.inp, self.gate = nn.Linear(6, d), nn.Linear(d, e)
            self.w1, self.w2 = nn.Parameter(torch.randn(e, d, h) * 0.1), nn.Parameter(torch.randn(e, h, d) * 0.1)
            self.out = nn.Linear(d, 3)

        def forward(self, x):
            x = self.inp(x)
            g = self.gate(x).softmax(-1)
            h = torch.einsum("bd,edh->beh", x, self.w1).relu()
            y = torch.einsum("beh,ehd->bed", h, self.w2)
            return self.out(x + torch.einsum("be,bed->bd", g, y))

    return Net(), torch.randn(4, 6), [torch.randn(7, 6)]


@network
def mixture_of_experts_routed_loop():
    class Net(nn.Module):
        def __init__(self, e=4, d=12):
            super().__init__()
            self.gate = nn.Linear(d, e, bias=False)
            self.experts = nn.ModuleList(nn.Sequential(nn.Linear(d, 24), nn.SiLU(), nn.Linear(24, d)) for _ in range(e))
            self.inp, self.out = nn.Linear(6, d), nn.Linear(d, 3)

        def forward(self, x):
            x = self.inp(x)
            w, idx = self.gate(x).softmax(-1).topk(2, -1)
            y = torch.zeros_like(x)
            for i, expert in enumerate(self.experts):
                rows, k = torch.where(idx == i)
                if len(rows):
                    y.index_add_(0, rows, expert(x[rows]) * w[rows, k, None])
            return self.out(y)

    return Net(), torch.randn(6, 6), [torch.randn(17, 6), torch.randn(1, 6)]


@network
def highway_and_maxout():
    class Net(nn.Module):
        def __init__(self, d=24):
            super().__init__()
            self.inp, self.H, self.T = nn.Linear(8, d), nn.Linear(d, d), nn.Linear(d, d)
            self.maxout, self.out = nn.Linear(d, 3 * 16), nn.Linear(16, 4)

        def forward(self, x):
            x = F.relu(self.inp(x))
            t = torch.sigmoid(self.T(x))
            x = t * F.relu(self.H(x)) + (1 - t) * x
            m = self.maxout(x).view(x.size(0), 16, 3).max(-1)[0]
            return self.out(m)

    return Net(), torch.randn(4, 8), [torch.randn(9, 8)]


@network
def hypernetwork_generated_weights():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.hyper = nn.Sequential(nn.Linear(4, 20), nn.ReLU(), nn.Linear(20, 16 * 8 + 16))
            self.out = nn.Linear(16, 3)

        def forward(self, x, z):
            p = self.hyper(z)
            w, b = p[: 16 * 8].view(16, 8), p[16 * 8 :]
            return self.out(torch.tanh(F.linear(x, w, b)))

    return Net(), (torch.randn(4, 8), torch.randn(4)), [(torch.randn(7, 8), torch.randn(4))]


@network
def lora_adapters():
    class LoRA(nn.Module):
        def __init__(self, base, r=4):
            super().__init__()
            self.base = base
            self.A, self.B, self.scale = nn.Parameter(torch.randn(r, base.in_features)), nn.Parameter(torch.randn(base.out_features, r)), 0.5

        def forward(self, x):
            return self.base(x) + (x @ self.A.T @ self.B.T) * self.scale

    return nn.Sequential(LoRA(nn.Linear(8, 24)), nn.GELU(), LoRA(nn.Linear(24, 24)), nn.GELU(), nn.Linear(24, 4)), torch.randn(4, 8), [torch.randn(2, 8)]


@network
def bayes_by_hand_uncertainty():
    @dataclass
    class Prediction:
        mean: Tensor
        var: Tensor
        parts: dict[str, Tensor]

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(nn.Linear(6, 32), nn.Softplus(), nn.Linear(32, 24), nn.Softplus())
            self.mean, self.var = nn.Linear(24, 2), nn.Linear(24, 2)

        def forward(self, x):
            h = self.body(x)
            return Prediction(self.mean(h), F.softplus(self.var(h)) + 1e-6, {"features": h.mean(0)})

    return Net(), torch.randn(4, 6), [torch.randn(9, 6)]


@network
def neural_ode_euler():
    class Net(nn.Module):
        def __init__(self, d=16):
            super().__init__()
            self.inp, self.f, self.out = nn.Linear(4, d), nn.Sequential(nn.Linear(d + 1, 32), nn.Tanh(), nn.Linear(32, d)), nn.Linear(d, 2)

        def forward(self, x, steps: int = 4):
            h = self.inp(x)
            for i in range(steps):
                t = torch.full((h.shape[0], 1), i / steps)
                h = h + self.f(torch.cat([h, t], 1)) / steps
            return self.out(h)

    return Net(), torch.randn(4, 4), [(torch.randn(3, 4), 7)]


@network
def coupling_flow():
    class Coupling(nn.Module):
        def __init__(self, d=8, flip=False):
            super().__init__()
            self.flip, self.net = flip, nn.Sequential(nn.Linear(d // 2, 24), nn.ReLU(), nn.Linear(24, d))

        def forward(self, x):
            a, b = torch.chunk(x, 2, dim=1)
            if self.flip:
                a, b = b, a
            s, t = self.net(a).chunk(2, 1)
            b = b * torch.exp(torch.tanh(s)) + t
            return torch.cat([b, a] if self.flip else [a, b], 1), torch.tanh(s).sum(1)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList(Coupling(flip=bool(i % 2)) for i in range(3))

        def forward(self, x):
            logdet = 0.0
            for layer in self.layers:
                x, ld = layer(x)
                logdet = logdet + ld
            return x, logdet

    return Net(), torch.randn(4, 8), [torch.randn(6, 8)]


@network
def vector_quantised_autoencoder():
    class Net(nn.Module):
        def __init__(self, k=12, d=8):
            super().__init__()
            self.enc, self.dec = nn.Sequential(ConvBlock(3, 12, s=2), nn.Conv2d(12, d, 1)), nn.Sequential(nn.ConvTranspose2d(d, 12, 2, 2), nn.ReLU(), nn.Conv2d(12, 3, 1))
            self.codebook = nn.Embedding(k, d)

        def forward(self, x):
            z = self.enc(x).permute(0, 2, 3, 1).contiguous()
            flat = z.view(-1, z.shape[-1])
            dist = flat.pow(2).sum(1, keepdim=True) - 2 * flat @ self.codebook.weight.t() + self.codebook.weight.pow(2).sum(1)
            idx = dist.argmin(1)
            q = self.codebook(idx).view(z.shape)
            q = z + (q - z).detach()
            return self.dec(q.permute(0, 3, 1, 2)), idx.view(z.shape[:-1])

    return Net(), *images(size=8, others=((3, 12, 6),))


@network
def fourier_neural_operator():
    class Spectral(nn.Module):
        def __init__(self, c, modes=3):
            super().__init__()
            self.modes, self.w = modes, nn.Parameter(torch.randn(c, c, modes, dtype=torch.cfloat) * 0.1)

        def forward(self, x):
            f = torch.fft.rfft(x)
            out = torch.zeros_like(f)
            out[:, :, : self.modes] = torch.einsum("bix,iox->box", f[:, :, : self.modes], self.w)
            return torch.fft.irfft(out, n=x.size(-1))

    class Net(nn.Module):
        def __init__(self, c=12):
            super().__init__()
            self.p, self.s, self.w, self.q = nn.Conv1d(2, c, 1), Spectral(c), nn.Conv1d(c, c, 1), nn.Sequential(nn.Conv1d(c, 20, 1), nn.GELU(), nn.Conv1d(20, 1, 1))

        def forward(self, x):
            x = self.p(x)
            return self.q(F.gelu(self.s(x) + self.w(x)))

    return Net(), torch.randn(2, 2, 16), [torch.randn(3, 2, 22)]


@network
def siren_fourier_features():
    class Net(nn.Module):
        def __init__(self, m=8):
            super().__init__()
            self.register_buffer("B", torch.randn(2, m) * 3)
            self.layers = nn.ModuleList([nn.Linear(2 * m, 24), nn.Linear(24, 24)])
            self.omega, self.out = 30.0, nn.Linear(24, 3)

        def forward(self, coords):
            p = 2 * math.pi * coords @ self.B
            h = torch.cat([torch.sin(p), torch.cos(p)], dim=-1)
            for layer in self.layers:
                h = torch.sin(self.omega * layer(h) / self.omega)
            return torch.sigmoid(self.out(h))

    return Net(), torch.rand(10, 2), [torch.rand(4, 5, 2)]


@network
def capsule_routing():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.prim = nn.Conv2d(1, 12, 3), nn.Conv2d(12, 4 * 6, 3, 2)
            self.W = nn.Parameter(torch.randn(1, 4 * 9, 3, 5, 6) * 0.1)

        def squash(self, x):
            n = (x**2).sum(-1, keepdim=True)
            return n / (1 + n) * x / torch.sqrt(n + 1e-8)

        def forward(self, x):
            u = self.prim(F.relu(self.conv(x)))
            u = self.squash(u.view(x.size(0), 4, 6, 9).permute(0, 1, 3, 2).reshape(x.size(0), 36, 1, 6, 1).squeeze(-1))
            u_hat = torch.matmul(self.W, u.unsqueeze(-1)).squeeze(-1)
            b = torch.zeros(*u_hat.shape[:3], 1)
            for _ in range(2):
                v = self.squash((b.softmax(2) * u_hat).sum(1, keepdim=True))
                b = b + (u_hat * v).sum(-1, keepdim=True)
            return v.squeeze(1).norm(dim=-1)

    return Net(), torch.randn(2, 1, 10, 10), [torch.randn(3, 1, 10, 10)]


@network
def netvlad_pooling():
    class Net(nn.Module):
        def __init__(self, k=4, d=16):
            super().__init__()
            self.body, self.assign = ConvBlock(3, d), nn.Conv2d(d, k, 1)
            self.centroids, self.fc = nn.Parameter(torch.rand(k, d)), nn.Linear(k * d, 8)

        def forward(self, x):
            f = self.body(x)
            f = F.normalize(f, p=2, dim=1)
            n, c = f.shape[:2]
            a = self.assign(f).view(n, -1, f.shape[2] * f.shape[3]).softmax(1)
            flat = f.view(n, c, -1)
            r = flat.expand(a.shape[1], -1, -1, -1).permute(1, 0, 2, 3) - self.centroids.expand(flat.size(-1), -1, -1).permute(1, 2, 0).unsqueeze(0)
            v = F.normalize((r * a.unsqueeze(2)).sum(-1), p=2, dim=2).view(n, -1)
            return self.fc(F.normalize(v, p=2, dim=1))

    return Net(), *images(size=8, others=((3, 10, 6),))


@network
def siamese_contrastive_dict_in():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(ConvBlock(3, 12), nn.MaxPool2d(2), ConvBlock(12, 16), nn.AdaptiveAvgPool2d(1), nn.Flatten())
            self.proj = nn.Sequential(nn.Linear(16, 20), nn.BatchNorm1d(20), nn.ReLU(), nn.Linear(20, 8))
            self.t = nn.Parameter(torch.tensor(2.0))

        def forward(self, batch):
            a, b = self.proj(self.body(batch["a"])), self.proj(self.body(batch["b"]))
            return self.t.exp() * F.normalize(a, dim=-1) @ F.normalize(b, dim=-1).T

    pair = lambda n, s: ({"a": torch.randn(n, 3, s, s), "b": torch.randn(n, 3, s, s)},)  # noqa: E731
    return Net(), pair(3, 8), [pair(5, 12)]


@network
def clip_two_towers():
    class Out(dict):
        def __getattr__(self, key):
            return self[key]

    class Net(nn.Module):
        def __init__(self, d=12):
            super().__init__()
            self.visual = nn.Sequential(ConvBlock(3, 16, s=2), ConvBlock(16, 24), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, d, bias=False))
            self.token, self.pos = nn.Embedding(40, 16), nn.Parameter(torch.randn(20, 16) * 0.1)
            self.enc = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
            self.text_proj, self.logit_scale = nn.Parameter(torch.randn(16, d)), nn.Parameter(torch.tensor(1.0))

        def forward(self, image, text):
            i = self.visual(image)
            x = self.enc(self.token(text) + self.pos[: text.shape[1]])
            t = x[torch.arange(x.shape[0]), text.argmax(-1)] @ self.text_proj
            i, t = i / i.norm(dim=-1, keepdim=True), t / t.norm(dim=-1, keepdim=True)
            logits = self.logit_scale.exp() * i @ t.t()
            return Out(logits_per_image=logits, logits_per_text=logits.t())

    one = lambda n, s, t: {"image": torch.randn(n, 3, s, s), "text": torch.randint(40, (n, t))}  # noqa: E731
    return Net(), one(2, 8, 6), [one(3, 12, 15)]


@network
def detr_queries():
    class Net(nn.Module):
        def __init__(self, d=16, q=5):
            super().__init__()
            self.backbone = nn.Sequential(ConvBlock(3, 12, s=2), ConvBlock(12, 20, s=2))
            self.conv, self.tr = nn.Conv2d(20, d, 1), nn.Transformer(d, 4, 1, 1, 32)
            self.query = nn.Parameter(torch.rand(q, d))
            self.row, self.col = nn.Parameter(torch.rand(20, d // 2)), nn.Parameter(torch.rand(20, d // 2))
            self.cls, self.box = nn.Linear(d, 4), nn.Linear(d, 4)

        def forward(self, x):
            h = self.conv(self.backbone(x))
            H, W = h.shape[-2:]
            pos = torch.cat([self.col[:W].unsqueeze(0).repeat(H, 1, 1), self.row[:H].unsqueeze(1).repeat(1, W, 1)], -1).flatten(0, 1).unsqueeze(1)
            h = self.tr(pos + 0.1 * h.flatten(2).permute(2, 0, 1), self.query.unsqueeze(1).repeat(1, x.shape[0], 1)).transpose(0, 1)
            return {"pred_logits": self.cls(h), "pred_boxes": self.box(h).sigmoid()}

    return Net(), *images(others=((3, 24, 20),))


@network
def actor_critic_recurrent():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(nn.Conv2d(2, 8, 3, 2), nn.ReLU(), nn.Conv2d(8, 12, 3), nn.ReLU(), nn.Flatten())
            self.cell = nn.LSTMCell(12 * 1 * 1, 16)
            self.pi, self.v = nn.Linear(16, 4), nn.Linear(16, 1)

        def forward(self, obs, state):
            h, c = self.cell(self.body(obs), state)
            return torch.distributions.Categorical(logits=self.pi(h)).logits, self.v(h), (h, c)

    one = lambda n: (torch.randn(n, 2, 7, 7), (torch.zeros(n, 16), torch.zeros(n, 16)))  # noqa: E731
    return Net(), one(2), [one(5)]


@network
def dueling_noisy_linear():
    class Noisy(nn.Module):
        def __init__(self, i, o):
            super().__init__()
            self.mu_w, self.sigma_w = nn.Parameter(torch.randn(o, i)), nn.Parameter(0.1 * torch.ones(o, i))
            self.mu_b, self.sigma_b = nn.Parameter(torch.zeros(o)), nn.Parameter(0.1 * torch.ones(o))
            self.register_buffer("eps_w", torch.randn(o, i))
            self.register_buffer("eps_b", torch.randn(o))

        def forward(self, x):
            return F.linear(x, self.mu_w + self.sigma_w * self.eps_w, self.mu_b + self.sigma_b * self.eps_b)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.f, self.a, self.v = nn.Linear(6, 24), Noisy(24, 4), Noisy(24, 1)

        def forward(self, x):
            x = F.relu(self.f(x))
            a = self.a(x)
            return self.v(x) + a - a.mean(1, keepdim=True)

    return Net(), torch.randn(3, 6), [torch.randn(5, 6)]


@network
def kolmogorov_arnold_splines():
    class KAN(nn.Module):
        def __init__(self, i, o, g=5):
            super().__init__()
            self.register_buffer("grid", torch.linspace(-2, 2, g))
            self.base, self.coef = nn.Linear(i, o), nn.Parameter(torch.randn(o, i, g) * 0.1)

        def forward(self, x):
            basis = torch.exp(-((x.unsqueeze(-1) - self.grid) ** 2))
            return self.base(F.silu(x)) + torch.einsum("big,oig->bo", basis, self.coef)

    return nn.Sequential(KAN(4, 16), KAN(16, 12), KAN(12, 2)), torch.randn(5, 4), [torch.randn(2, 4)]


@network
def scripted_submodule_free_functions():
    def gelu_new(x):
        return 0.5 * x * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * torch.pow(x, 3.0))))

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.l1, self.l2 = nn.Linear(8, 32), nn.Linear(32, 16)
            self.ln = nn.LayerNorm([4, 4])
            self.out = nn.Linear(16, 3)

        def forward(self, *args, **kwargs):
            x = args[0] if args else kwargs["x"]
            h = gelu_new(self.l2(gelu_new(self.l1(x))))
            return self.out(self.ln(h.view(-1, 4, 4)).flatten(1))

    return Net(), torch.randn(3, 8), [{"x": torch.randn(5, 8)}]


@network
def anomaly_autoencoder_1d_strided():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.e1, self.e2 = nn.Conv1d(2, 12, 4, 2, 1), nn.Conv1d(12, 20, 4, 2, 1)
            self.d1, self.d2 = nn.ConvTranspose1d(20, 12, 4, 2, 1), nn.ConvTranspose1d(12, 2, 4, 2, 1)
            self.n1, self.n2 = nn.InstanceNorm1d(12, affine=True), nn.GroupNorm(1, 20)

        def forward(self, x):
            h = F.gelu(self.n1(self.e1(x)))
            z = F.gelu(self.n2(self.e2(h)))
            r = self.d2(F.gelu(self.d1(z)) + h)
            return r, ((r - x) ** 2).mean((1, 2))

    return Net(), torch.randn(2, 2, 16), [torch.randn(3, 2, 32)]
