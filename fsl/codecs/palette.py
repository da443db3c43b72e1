"""What codecs of vectors send: a palette of vectors, and for each place which of them stands there, in few bits."""

import torch
from torch import Tensor

from fsl import seeds
from fsl.codecs.codec import Payload, pack
from fsl.errors import WireError

_WHOLE = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # of so many bytes


def palette_payload(codec: str, dtype: torch.dtype, book: Tensor, places: Tensor, shape: torch.Size) -> Payload:
    """Returns books (G, K, d) and places (G, N) in them, each in `index_bits(K)` bits, as a payload.

    `dtype` and `shape`: of the values that they stand for.
    """
    data = pack_indices(places.flatten(), index_bits(book.shape[1]))
    return pack(codec, dtype, ("values", data), ("palette", book), shape=shape)


def read_palette(codec: str, payload: Payload, shape: tuple[int, int, int], dtype: torch.dtype, most: int) -> Tensor:
    """Returns the vectors of this shape (G, N, d) that a payload's palettes of at most so many stand for.

    WireError where the payload is another codec's, or its arrays have another dtype or shape, or an index is beyond its
    palette. The caller has checked that vectors of this shape may be made.
    """
    data, book = payload.unpack(codec, values=torch.uint8, palette=dtype)
    groups, count, width = shape
    known = book.dim() == 3 and (book.shape[0], book.shape[2]) == (groups, width)
    if not known or not min(1, count) <= book.shape[1] <= most:
        raise WireError(
            f"codec '{codec}' got a palette of shape {tuple(book.shape)}; it takes one of shape ({groups}, up to "
            f"{most}, {width})"
        )
    places = unpack_indices(codec, data, index_bits(book.shape[1]), groups * count).view(groups, count)
    if places.numel() and int(places.max()) >= book.shape[1]:
        raise WireError(f"codec '{codec}' got an index {int(places.max())} into a palette of {book.shape[1]}")
    return book.gather(1, places.unsqueeze(2).expand(-1, -1, width))


def distinct(vectors: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the distinct rows (K, d) of vectors (N, d), by their bits, and the place (N,) of each vector in them."""
    if not len(vectors):
        return vectors, torch.empty(0, dtype=torch.int64, device=vectors.device)
    bits = vectors.contiguous().view(_WHOLE[vectors.element_size()])
    generator = seeds.torch_generator(0, "palette", step=bits.shape[1])
    factors = torch.randint(-(1 << 62), 1 << 62, (bits.shape[1],), generator=generator) * 2 + 1
    hashes = (bits.to(torch.int64) * factors.to(bits.device)).sum(dim=1)  # modulo 2^64
    found, places = hashes.unique(return_inverse=True)
    one = torch.empty_like(found).scatter_(0, places, torch.arange(len(bits), device=bits.device))
    if bool((bits[one][places] == bits).all()):
        return vectors[one], places
    rows, places = bits.unique(dim=0, return_inverse=True)  # two rows have one hash
    return rows.view(vectors.dtype), places


def index_bits(count: int) -> int:
    """Returns the bits of an index into so many: 0 where there is but one."""
    return max(0, count - 1).bit_length()


def pack_indices(indices: Tensor, bits: int) -> Tensor:
    """Returns indices (N,), each in so many bits, lowest first, as ceil(N * bits / 8) bytes."""
    places = torch.arange(bits, device=indices.device)
    each = ((indices.unsqueeze(1) >> places) & 1).to(torch.uint8).flatten()
    whole = torch.nn.functional.pad(each, (0, -len(each) % 8)).view(-1, 8)
    return (whole << torch.arange(8, dtype=torch.uint8, device=indices.device)).sum(dim=1, dtype=torch.uint8)


def unpack_indices(codec: str, data: Tensor, bits: int, count: int) -> Tensor:
    """Returns so many indices (N,) from what `pack_indices` made (uint8); WireError for another number of bytes."""
    if data.shape != (-(-count * bits // 8),):
        raise WireError(f"codec '{codec}' got {data.numel()} bytes for {count} indices of {bits} bits")
    each = (data.unsqueeze(1) >> torch.arange(8, dtype=torch.uint8, device=data.device)) & 1
    used = each.flatten()[: count * bits].view(count, bits).to(torch.int64)
    return (used << torch.arange(bits, device=data.device)).sum(dim=1)
