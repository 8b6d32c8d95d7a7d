"""The vision encoder's and the projector's shape, read from the configuration, and their FLOPs in closed form.

Two kinds of tower: **tiles** of one fixed size (CLIP, SigLIP, InternViT, Mllama's; every crop costs the same) and
**grids** of any size (Qwen's; attention spans one image, or windows of it). A projector is a list of matrices, each
with the number of rows that meet it, given as a share of the patches.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction

from vlmbench.cost.stage_costs import ClosedFormError
from vlmbench.request import TokenCounts


@dataclass(frozen=True, kw_only=True)
class Tower:
    """A vision transformer; all numbers in elements.

    Args:
        hidden: width.
        intermediate: width of the feed-forward.
        layers: blocks that are computed (also those whose result is thrown away).
        attention_width: heads times head_dim.
        patch_elements: inputs of the patch embedding (channels, height, width, frames multiplied).
        mlp_matrices: 3 with a gate, else 2.
        tile_patches: patches of one tile; 0 for a tower that takes grids of any size.
        tile_extra: further positions of a tile (a class token, padding).
        tiles_joined: tiles that attend to each other (1: every tile for itself).
        windowed_layers: blocks that attend within windows.
        window: side of a window in patches.
        merge: side of the square of patches that the merger joins (windows are aligned to it).
    """

    hidden: int
    intermediate: int
    layers: int
    attention_width: int
    patch_elements: int
    mlp_matrices: int = 2
    tile_patches: int = 0
    tile_extra: int = 0
    tiles_joined: int = 1
    windowed_layers: int = 0
    window: int = 0
    merge: int = 1

    @property
    def layer_elements(self) -> int:
        """Elements of the matrices of one block."""
        return 4 * self.hidden * self.attention_width + self.mlp_matrices * self.hidden * self.intermediate

    @property
    def elements(self) -> int:
        """Elements of all matrices, patch embedding included."""
        return self.patch_elements * self.hidden + self.layers * self.layer_elements

    def flops_of_tiles(self, tiles: int) -> int:
        """FLOPs of ``tiles`` tiles."""
        positions = self.tile_patches + self.tile_extra
        joined = self.tiles_joined * positions
        attention = 4 * self.attention_width * joined * joined * (tiles // self.tiles_joined)
        embed = 2 * tiles * self.tile_patches * self.patch_elements * self.hidden
        return embed + self.layers * (2 * tiles * positions * self.layer_elements + attention)

    def flops_of_grids(self, grids: Sequence[tuple[int, int]]) -> int:
        """FLOPs of images of (height, width) patches."""
        patches = sum(h * w for h, w in grids)
        full = sum((h * w) ** 2 for h, w in grids)
        windows = sum(_squares(h, self.window) * _squares(w, self.window) for h, w in grids) if self.window else 0
        pairs = (self.layers - self.windowed_layers) * full + self.windowed_layers * windows
        return 2 * patches * self.elements + 4 * self.attention_width * pairs


def _squares(side: int, window: int) -> int:
    """Sum of the squared lengths of the pieces that windows cut a side into."""
    return (side // window) * window * window + (side % window) ** 2


@dataclass(frozen=True, kw_only=True)
class Projector:
    """A connector: matrices and the rows that meet them.

    Args:
        matrices: (rows per patch, elements of the matrix); patches exclude class tokens.
        attention_per_patch: FLOPs of attention in it, per patch (attention pooling).
        rows_are_tokens: rows count the tokens that come out instead of the patches.
        class_rows: rows of each tile that are no patches (Mllama projects its class token too).
    """

    matrices: tuple[tuple[Fraction, int], ...]
    attention_per_patch: int = 0
    rows_are_tokens: bool = False
    class_rows: int = 0

    @property
    def elements(self) -> int:
        """Elements of all matrices."""
        return sum(n for _, n in self.matrices)

    def flops(self, rows: int) -> int:
        """FLOPs for ``rows`` patches (or tokens)."""
        return sum(int(2 * rows * share * n) for share, n in self.matrices) + rows * self.attention_per_patch


@dataclass(frozen=True, kw_only=True)
class Vision:
    """Tower and projector of one model."""

    tower: Tower
    projector: Projector
    notes: tuple[str, ...] = field(default_factory=tuple)

    def tiles(self, counts: TokenCounts) -> int:
        """Tiles that the tower computes for a request.

        Raises:
            ClosedFormError: the counts say neither crops nor patches.
        """
        if not counts.num_images:
            return 0
        if self.tower.tiles_joined > 1:
            return counts.num_images * self.tower.tiles_joined
        if counts.num_crops:
            return counts.num_crops
        if counts.num_vision_patches:
            return max(1, counts.num_vision_patches // self.tower.tile_patches)
        raise ClosedFormError("neither 'num_crops' nor 'num_vision_patches' is known for a request with images")

    def grids(self, counts: TokenCounts) -> list[tuple[int, int]]:
        """The most square grids, one an image, that have the observed number of patches.

        Raises:
            ClosedFormError: the patches are not known, or do not make equal grids.
        """
        if not counts.num_images:
            return []
        if not counts.num_vision_patches:
            raise ClosedFormError("'num_vision_patches' is not known for a request with images")
        return nearest_grids(counts.num_vision_patches, counts.num_images, self.tower.merge)

    def flops(self, counts: TokenCounts, grids: Sequence[tuple[int, int]] | None = None) -> tuple[int, int]:
        """FLOPs of tower and projector.

        Args:
            counts: observed or predicted counts of one row.
            grids: (height, width) in patches of each image where known; the most square ones otherwise.
        """
        if self.tower.tile_patches:
            tiles = self.tiles(counts)
            rows = tiles * (self.tower.tile_patches + self.projector.class_rows)
            tower = self.tower.flops_of_tiles(tiles)
        else:
            shapes = list(grids) if grids is not None else self.grids(counts)
            rows = sum(h * w for h, w in shapes)
            tower = self.tower.flops_of_grids(shapes)
        return tower, self.projector.flops(counts.num_vision_tokens if self.projector.rows_are_tokens else rows)


def nearest_grids(patches: int, images: int, merge: int) -> list[tuple[int, int]]:
    """``images`` grids of ``patches`` in all, each as square as possible, sides multiples of ``merge``.

    Raises:
        ClosedFormError: no such grids (unequal images whose patches do not divide: give the grids themselves).
    """
    cells, rest = divmod(patches, merge * merge)
    if rest or cells < images:
        raise ClosedFormError(f"{patches} patches do not make {images} grids of {merge}×{merge} cells; give 'grids'")
    # Images of unequal size: as equal as whole cells allow.
    shares = [cells // images + (i < cells % images) for i in range(images)]
    grids = []
    for share in shares:
        height = next(h for h in range(math.isqrt(share), 0, -1) if share % h == 0)
        grids.append((height * merge, share // height * merge))
    return grids
