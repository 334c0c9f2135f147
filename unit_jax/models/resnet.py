"""ResNet with frozen batch norm and a dilated last stage (DC5), exact under padding.

Padded pixels become non-zero in every convolution and batch norm and would leak into real ones
(DETR's authors report about ten AP lost that way). Where a spatial convolution reads, everything
outside the valid region is zeroed, as zero padding at the image's border would be; then an image
gives the same features alone and in any padded batch. The valid size is ceil-divided at each
stride, as the image alone would be.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from unit_jax.models import lean
from unit_jax.models.lean import from_inputs, relu
from unit_jax.models.residuals import LAYER, keep
from unit_jax.models.transformer import recomputed
from unit_jax.precision import at_least_float32
from unit_jax.runtime.partitioning import replicate
from unit_jax.settings import BackboneSettings

EXPANSION = 4  # a block's output is this many times wider than its 3x3 convolution


class FrozenStatistic(nnx.Variable):
    """A batch-norm tensor: stored with the model, never trained."""


def valid_mask(
    sizes: Int[Array, "batch 2"], height: int, width: int
) -> Bool[Array, "batch height width"]:
    """True inside the top-left (height, width) region of each image."""
    rows = jnp.arange(height) < sizes[:, :1]
    columns = jnp.arange(width) < sizes[:, 1:]
    return rows[:, :, None] & columns[:, None, :]


def halve(sizes: Int[Array, "batch 2"] | None) -> Int[Array, "batch 2"] | None:
    """Valid sizes after a stride of 2."""
    return None if sizes is None else (sizes + 1) // 2


def _zero_padding(x: Float[Array, "batch height width channels"], sizes) -> Array:
    """Zeroes what lies outside the valid region; `sizes` None leaves all as it is."""
    if sizes is None:
        return x
    return jnp.where(valid_mask(sizes, *x.shape[1:3])[..., None], x, 0)


def relu_inside(
    x: Float[Array, "batch height width channels"], sizes: Int[Array, "batch 2"] | None
) -> Float[Array, "batch height width channels"]:
    """ReLU, and zero outside the valid region; the derivative keeps the result alone, which the
    convolution that reads it keeps as well."""
    return _relu_inside(lean.relu_input(x), sizes)


@jax.custom_vjp
def _relu_inside(x, sizes):
    return _zero_padding(jnp.maximum(x, 0), sizes)


def _relu_inside_forward(x, sizes):
    y = _zero_padding(jnp.maximum(x, 0), sizes)
    return y, y


def _relu_inside_backward(y, cotangent):
    return jnp.where(y > 0, cotangent, 0), None


_relu_inside.defvjp(_relu_inside_forward, _relu_inside_backward)


_POOL_BORDER = ((0, 0), (1, 1), (1, 1), (0, 0))


@jax.custom_vjp
def max_pool(
    x: Float[Array, "batch height width channels"],
) -> Float[Array, "batch h w channels"]:
    """The largest of 3x3 at a stride of 2; h = ceil(height / 2), and the border counts as -inf.

    The first of several equal ones gets the gradient, as in PyTorch. XLA's own derivative takes
    three times as long on CPUs. (Where the stem is frozen, as by default, there is none.)
    """
    return jax.lax.reduce_window(
        x,
        -jnp.inf,
        jax.lax.max,
        window_dimensions=(1, 3, 3, 1),
        window_strides=(1, 2, 2, 1),
        padding=_POOL_BORDER,
    )


def _max_pool_forward(x):
    y = max_pool(x)
    return y, (x, y)


def _max_pool_backward(kept, cotangent):
    x, y = kept
    padded = jnp.pad(x, _POOL_BORDER, constant_values=-jnp.inf)
    gradient = jnp.zeros_like(padded)
    open_windows = jnp.ones(y.shape, bool)
    for row in range(3):
        for column in range(3):
            rows = slice(row, row + 2 * y.shape[1] - 1, 2)
            columns = slice(column, column + 2 * y.shape[2] - 1, 2)
            first = open_windows & (padded[:, rows, columns] == y)
            gradient = gradient.at[:, rows, columns].add(jnp.where(first, cotangent, 0))
            open_windows &= ~first
    return (gradient[:, 1:-1, 1:-1],)


max_pool.defvjp(_max_pool_forward, _max_pool_backward)


class FrozenBatchNorm(nnx.Module):
    """Batch norm with fixed statistics, folded into a multiplication and an addition (float32)."""

    def __init__(self, channels: int, eps: float):
        self.scale = FrozenStatistic(jnp.ones(channels))
        self.bias = FrozenStatistic(jnp.zeros(channels))
        self.mean = FrozenStatistic(jnp.zeros(channels))
        self.var = FrozenStatistic(jnp.ones(channels))
        self.eps = eps
        self.calibrating = False

    def __call__(self, x: Float[Array, "... channels"]) -> Float[Array, "... channels"]:
        multiplier, shift = self.folded()
        # Rounded once, at the end: where a mean is large, its product and the shift nearly cancel.
        return (x * multiplier + shift).astype(x.dtype)

    def folded(self) -> tuple[Float[Array, "channels"], Float[Array, "channels"]]:
        """(multiplier, shift): the norm of x is x * multiplier + shift."""
        multiplier = self.scale[...] * jax.lax.rsqrt(self.var[...] + self.eps)
        return multiplier, self.bias[...] - self.mean[...] * multiplier

    def calibrate(self, x: Float[Array, "... channels"]) -> None:
        """Takes the mean and variance of x."""
        axes = tuple(range(x.ndim - 1))
        self.mean[...], self.var[...] = x.mean(axes), x.var(axes)


class Conv(nnx.Module):
    """Convolution without bias, zero padding of half the kernel; NHWC and HWIO."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        size: int,
        *,
        rngs: nnx.Rngs,
        stride: int = 1,
        dilation: int = 1,
    ):
        init = nnx.initializers.variance_scaling(2.0, "fan_out", "normal")
        self.kernel = nnx.Param(init(rngs.params(), (size, size, inputs, outputs), jnp.float32))
        self.stride = stride
        self.dilation = dilation

    def __call__(self, x: Float[Array, "batch height width inputs"]) -> Float[Array, "..."]:
        return self._convolve(x, self.kernel[...])

    def normed(
        self, x: Float[Array, "batch height width inputs"], norm: FrozenBatchNorm
    ) -> Float[Array, "..."]:
        """norm(self(x)); the multiplication is done to the kernel. The derivative keeps x."""
        if norm.calibrating:
            y = self(x)
            norm.calibrate(y)
            return norm(y)
        multiplier, shift = norm.folded()
        scaled = from_inputs(lambda x, kernel, by: self._convolve(x, kernel * by))
        y = scaled(x, self.kernel[...], multiplier)
        # Rounded once more, at the end: a large mean and the shift nearly cancel.
        return (at_least_float32(y) + shift).astype(x.dtype)

    def _convolve(self, x: Array, kernel: Array) -> Array:
        # Gathered before use: what XLA's partitioner made of convolutions whose channels are split
        # over `tensor` had wrong gradients (jax 0.10.2, CPU; tests/training/test_sharding.py).
        kernel = replicate(kernel.astype(x.dtype))
        if kernel.shape[:2] == (1, 1):
            # A matrix product: on CPU, XLA computes its gradient for the kernel several times
            # faster than a convolution's.
            return x[:, :: self.stride, :: self.stride] @ kernel[0, 0]
        padding = self.dilation * (kernel.shape[0] // 2)
        return jax.lax.conv_general_dilated(
            x,
            kernel,
            window_strides=(self.stride, self.stride),
            padding=((padding, padding), (padding, padding)),
            rhs_dilation=(self.dilation, self.dilation),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )


class Bottleneck(nnx.Module):
    """1x1, 3x3 (with the stride, as torchvision has it), 1x1, and a shortcut."""

    def __init__(
        self,
        inputs: int,
        width: int,
        stride: int,
        dilation: int,
        eps: float,
        *,
        rngs: nnx.Rngs,
        projects: bool,
    ):
        self.conv1 = Conv(inputs, width, 1, rngs=rngs)
        self.bn1 = FrozenBatchNorm(width, eps)
        self.conv2 = Conv(width, width, 3, rngs=rngs, stride=stride, dilation=dilation)
        self.bn2 = FrozenBatchNorm(width, eps)
        self.conv3 = Conv(width, EXPANSION * width, 1, rngs=rngs)
        self.bn3 = FrozenBatchNorm(EXPANSION * width, eps)
        self.projects = projects
        if projects:
            self.shortcut_conv = Conv(inputs, EXPANSION * width, 1, rngs=rngs, stride=stride)
            self.shortcut_bn = FrozenBatchNorm(EXPANSION * width, eps)

    def __call__(self, x: Float[Array, "batch height width inputs"], sizes) -> Array:
        """`sizes`: valid size of the input, or None."""
        y = relu_inside(self.conv1.normed(x, self.bn1), sizes)
        y = relu(self.conv2.normed(y, self.bn2))
        y = self.conv3.normed(y, self.bn3)
        shortcut = self.shortcut_conv.normed(x, self.shortcut_bn) if self.projects else x
        return relu(shortcut + y)


class ResNet(nnx.Module):
    """The backbone: images to features at stride 16 (dilated) or 32."""

    def __init__(
        self, settings: BackboneSettings, *, rngs: nnx.Rngs, recompute_blocks: bool = False
    ):
        self.recompute_blocks = recompute_blocks
        self.conv1 = Conv(3, settings.width, 7, rngs=rngs, stride=2)
        self.bn1 = FrozenBatchNorm(settings.width, settings.bn_eps)
        self.strides = (1, 2, 2, 1 if settings.dilation else 2)
        channels = settings.width
        for stage, (depth, stride) in enumerate(zip(settings.depths, self.strides, strict=True)):
            width = settings.width * 2**stage
            dilated = settings.dilation and stage == 3
            blocks = []
            for block in range(depth):
                blocks.append(
                    Bottleneck(
                        channels,
                        width,
                        stride if block == 0 else 1,
                        # As in torchvision, the first block keeps the dilation of the stage before.
                        2 if dilated and block > 0 else 1,
                        settings.bn_eps,
                        rngs=rngs,
                        projects=block == 0,
                    )
                )
                channels = EXPANSION * width
            setattr(self, f"layer{stage + 1}", nnx.List(blocks))
        self.channels = channels

    def __call__(
        self, x: Float[Array, "batch height width 3"], sizes: Int[Array, "batch 2"] | None
    ) -> tuple[Float[Array, "batch h w channels"], Int[Array, "batch 2"] | None]:
        """Features and their valid sizes.

        Args:
          x: normalised images.
          sizes: (height, width) of the valid region; None treats padding as picture, as the
            reference does.
        """
        x = self.conv1.normed(_zero_padding(x, sizes), self.bn1)
        sizes = halve(sizes)
        # After ReLU zero is neutral for the maximum, as is the -inf at the border.
        x = max_pool(relu_inside(x, sizes))
        sizes = halve(sizes)
        for stage, stride in enumerate(self.strides):
            for block, bottleneck in enumerate(getattr(self, f"layer{stage + 1}")):
                call = lambda x, sizes, block=bottleneck: block(x, sizes)  # noqa: E731
                # Calibration changes the blocks, which code that is traced apart may not do.
                recompute = self.recompute_blocks and not self.bn1.calibrating
                x = keep(recomputed(call, recompute)(x, sizes), LAYER)
                if block == 0 and stride == 2:
                    sizes = halve(sizes)
        return x, sizes


def calibrate(backbone: ResNet, x: Float[Array, "batch height width 3"]) -> None:
    """Sets every batch norm's mean and variance to those of its input, in place.

    For training from scratch: frozen statistics of 0 and 1 would neither normalise nor learn.

    Args:
      x: normalised images without padding.
    """
    norms = [module for _, module in nnx.iter_modules(backbone) if type(module) is FrozenBatchNorm]
    for norm in norms:
        norm.calibrating = True
    backbone(x, None)
    for norm in norms:
        norm.calibrating = False
