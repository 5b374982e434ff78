"""The contract of an imported network: what it takes, what it returns, and how large images may be cut into tiles."""

from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

Tiling = Literal["exact", "approximate", "never"]


class LatentContract(BaseModel):
    """The latents of a network that encodes images to floats."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    channels: int = Field(ge=1)
    factor: int = Field(ge=1, description="pixels of an image for each value of the latent, in each direction")
    is_distribution: bool = Field(False, description="whether the encoder returns a distribution: mode or sample")
    scaling_factor: float | None = Field(
        None, description="what trainers multiply a latent by, after they subtract shift_factor; stored latents are unscaled"
    )
    shift_factor: float | None = None


class Contract(BaseModel):
    """What holds for every call of a network.

    Attributes:
        input_range: the values of black and white in the images that the network takes and returns.
        channels: colour planes that the network takes: 3, or 1 for a network that processes each plane by itself.
        scale: height and width of an output divided by those of its input.
        size_multiple: height and width of an input must be multiples of it, in pixels.
        min_side: smallest height and width of an input, in pixels.
        tiling: "exact": an output pixel depends only on inputs within `halo`, so that tiles give the result of the whole
            image. "approximate": tiles overlap by `halo` and are blended. "never": the network takes whole images.
        halo: overlap of tiles, in input pixels.
        noise_level: whether the network takes the noise level of the images.
        mask: whether the network takes a mask of each image, 1 where a pixel is missing, and fills these pixels.
        dtypes: number formats in which the network gave the result of float32 at its import, within one level.
        bytes_per_pixel: memory that the network needs for each pixel of an input; None if it was not measured.
        latent: for a network that encodes images to float latents.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    ADDED: ClassVar[frozenset[str]] = frozenset({"mask"})
    """Fields that contracts did not always have."""

    input_range: tuple[float, float] = (0.0, 1.0)
    channels: Literal[1, 3] = 3
    scale: int = Field(1, ge=1)
    size_multiple: int = Field(1, ge=1)
    min_side: int = Field(1, ge=1)
    tiling: Tiling = "never"
    halo: int = Field(0, ge=0)
    noise_level: bool = False
    mask: bool = False
    dtypes: tuple[str, ...] = ("float32",)
    bytes_per_pixel: int | None = None
    latent: LatentContract | None = None

    def digest_values(self) -> dict[str, Any]:
        """Return what the digest of a checkpoint covers: all that changes pixels.

        The defaults of ADDED are left out, so that a new field does not change the digest of a network that was imported
        before. Figures that depend on the machine are left out, too.
        """
        values = self.model_dump(mode="json", exclude={"dtypes", "bytes_per_pixel"})
        return {key: v for key, v in values.items() if key not in self.ADDED or v != type(self).model_fields[key].default}
