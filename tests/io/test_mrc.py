"""MRC: round trips against mrcfile, both byte orders, every mode, rows 1 to 10 of the faults."""

from __future__ import annotations

import gzip
import struct
import tracemalloc
import warnings
from pathlib import Path

import mrcfile
import numpy as np
import pytest
import torch

from vitreous.core.errors import InputError
from vitreous.io.mrc import MrcStack, MrcStackWriter, read_header, read_mrc, write_mrc

RNG = np.random.default_rng(7)


def patched(source: Path, target: Path, offset: int, payload: bytes) -> Path:
    raw = bytearray(source.read_bytes())
    raw[offset : offset + len(payload)] = payload
    target.write_bytes(raw)
    return target


@pytest.fixture
def volume_file(tmp_path: Path) -> Path:
    path = tmp_path / "volume.mrc"
    write_mrc(path, RNG.normal(size=(6, 6, 6)), 2.5)
    return path


def both_ways(path: Path) -> list[str]:
    """The rejection of the loading and of the mapping reader."""
    texts = []
    for reader in (read_mrc, MrcStack):
        with pytest.raises(InputError) as caught:
            reader(path)
        texts.append(str(caught.value))
        assert str(path) in texts[-1]
    assert texts[0] == texts[1]
    return texts


def test_volume_round_trip_and_header_as_mrcfile_sees_it(tmp_path: Path) -> None:
    data = RNG.normal(size=(5, 6, 7)).astype(np.float32)
    write_mrc(tmp_path / "a.mrc", data, 1.25)
    back, header = read_mrc(tmp_path / "a.mrc")
    assert np.array_equal(back, data)
    assert back.dtype == np.float32
    assert header.pixel_size_angstrom == pytest.approx(1.25)
    assert not header.is_stack
    assert mrcfile.validate(str(tmp_path / "a.mrc"))
    with mrcfile.open(tmp_path / "a.mrc") as oracle:
        assert np.array_equal(oracle.data, data)
        assert int(oracle.header.ispg) == 1
        assert oracle.header.cella.tolist() == pytest.approx((7 * 1.25, 6 * 1.25, 5 * 1.25))
        assert float(oracle.header.rms) == pytest.approx(data.std(), rel=1e-5)
        assert float(oracle.header.dmean) == pytest.approx(data.mean(), abs=1e-6)


@pytest.mark.parametrize("mode", [2, 12])
def test_stack_writer_streams_batches_and_tensors(tmp_path: Path, mode: int) -> None:
    images = torch.randn(7, 4, 5, generator=torch.Generator().manual_seed(1))
    path = tmp_path / "s.mrcs"
    with MrcStackWriter(path, 3.0, mode=mode) as writer:
        writer.append(images[:4])
        assert not path.exists()
        writer.append(images[4])
        writer.append(images[5:])
    assert [p.name for p in tmp_path.iterdir()] == ["s.mrcs"]
    assert mrcfile.validate(str(path))
    stack = MrcStack(path)
    want = images.half().float() if mode == 12 else images
    assert stack.shape == (7, 4, 5)
    assert stack.pixel_size_angstrom == pytest.approx(3.0)
    assert stack.header.is_stack
    assert np.array_equal(stack.read([6, 0, 6]), want[[6, 0, 6]].numpy())
    assert np.array_equal(stack.read(slice(1, 3)), want[1:3].numpy())
    assert stack.read([2]).dtype == np.float32
    with mrcfile.open(path) as oracle:
        assert oracle.is_image_stack()
        assert oracle.voxel_size.tolist() == (3.0, 3.0, 3.0)
        assert float(oracle.header.rms) == pytest.approx(float(want.std(correction=0)), rel=1e-3)


def test_failed_stream_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "s.mrcs"
    path.write_bytes(b"old")

    def broken() -> None:
        with MrcStackWriter(path, 1.0) as writer:
            writer.append(np.zeros((2, 4, 4)))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        broken()

    def uneven() -> None:
        with MrcStackWriter(path, 1.0) as writer:
            writer.append(np.zeros((2, 4, 4)))
            writer.append(np.zeros((2, 4, 5)))

    with pytest.raises(ValueError, match="expected images of"):
        uneven()
    with pytest.raises(ValueError, match="no image"), MrcStackWriter(path, 1.0):
        pass
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["s.mrcs"]


@pytest.mark.parametrize("dtype", ["i1", "i2", "f4", "u2", "f2"])
@pytest.mark.parametrize("order", ["<", ">"])
def test_every_mode_and_byte_order_of_mrcfile(tmp_path: Path, dtype: str, order: str) -> None:
    data = RNG.integers(0, 100, size=(3, 4, 4)).astype(dtype)
    path = tmp_path / "m.mrc"
    with mrcfile.new(path) as target:
        target.set_data(data.astype(np.dtype(dtype).newbyteorder(order)))
        target.voxel_size = 1.5
    back, header = read_mrc(path)
    assert np.array_equal(back, data)
    assert back.dtype == np.dtype(dtype)
    assert back.dtype.isnative
    assert header.pixel_size_angstrom == pytest.approx(1.5)
    assert np.array_equal(MrcStack(path).read([2, 1]), data[[2, 1]].astype(np.float32))


def test_big_endian_from_the_bytes_alone(tmp_path: Path) -> None:
    raw = bytearray(1024)
    raw[0:16] = struct.pack(">4i", 2, 2, 1, 1)
    raw[28:40] = struct.pack(">3i", 2, 2, 1)
    raw[40:52] = struct.pack(">3f", 6.0, 6.0, 3.0)
    raw[208:216] = b"MAP \x11\x11\x00\x00"
    path = tmp_path / "big.mrc"
    path.write_bytes(bytes(raw) + struct.pack(">4h", 1, -2, 300, 4))
    data, header = read_mrc(path)
    assert data.tolist() == [[[1, -2], [300, 4]]]
    assert header.pixel_size_angstrom == 3.0


def test_axis_order_is_undone(tmp_path: Path) -> None:
    data = RNG.normal(size=(2, 3, 4)).astype(np.float32)  # z, y, x
    path = tmp_path / "t.mrc"
    write_mrc(path, np.ascontiguousarray(data.transpose(1, 2, 0)), 1.0)  # stored y, x, z
    patched(path, path, 64, struct.pack("<3i", 3, 1, 2))
    assert np.array_equal(read_mrc(path)[0], data)
    with pytest.raises(InputError, match="axis order"):
        MrcStack(path)


def test_gzip_round_trip(tmp_path: Path, volume_file: Path) -> None:
    packed = tmp_path / "volume.map.gz"
    packed.write_bytes(gzip.compress(volume_file.read_bytes()))
    assert np.array_equal(read_mrc(packed)[0], read_mrc(volume_file)[0])
    with pytest.raises(InputError, match="gunzip"):
        MrcStack(packed)
    raw = volume_file.read_bytes()
    packed.write_bytes(gzip.compress(raw[:1500]) + gzip.compress(raw[1500:]))
    assert np.array_equal(read_mrc(packed)[0], read_mrc(volume_file)[0])


def test_fault_1_short_header(tmp_path: Path) -> None:
    path = tmp_path / "a.mrc"
    path.write_bytes(b"\0" * 1000)
    assert "1000 bytes" in both_ways(path)[0]
    path.write_bytes(b"")
    both_ways(path)


def test_fault_2_truncated_data_states_both_sizes(tmp_path: Path, volume_file: Path) -> None:
    path = tmp_path / "cut.mrc"
    path.write_bytes(volume_file.read_bytes()[:-1])
    text = both_ways(path)[0]
    assert str(1024 + 864) in text
    assert str(1024 + 863) in text


def test_fault_3_giant_claim_costs_no_memory(tmp_path: Path, volume_file: Path) -> None:
    path = patched(volume_file, tmp_path / "g.mrc", 0, struct.pack("<3i", *[100_000] * 3))
    packed = tmp_path / "g.mrc.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    tracemalloc.start()
    both_ways(path)
    with pytest.raises(InputError, match="needs"):
        read_mrc(packed)
    assert tracemalloc.get_traced_memory()[1] < 5e7
    tracemalloc.stop()


@pytest.mark.parametrize("dims", [(0, 6, 6), (6, -6, 6), (6, 6, 0), (-1, -6, 6)])
def test_fault_4_dimensions(tmp_path: Path, volume_file: Path, dims: tuple[int, ...]) -> None:
    path = patched(volume_file, tmp_path / "d.mrc", 0, struct.pack("<3i", *dims))
    assert "must be positive" in both_ways(path)[0]


@pytest.mark.parametrize("extended", [2_000_000_000, -16])
def test_fault_5_extended_header(tmp_path: Path, volume_file: Path, extended: int) -> None:
    path = patched(volume_file, tmp_path / "n.mrc", 92, struct.pack("<i", extended))
    tracemalloc.start()
    assert "nsymbt" in both_ways(path)[0]
    assert tracemalloc.get_traced_memory()[1] < 1e7
    tracemalloc.stop()


def test_extended_header_is_skipped(tmp_path: Path, volume_file: Path) -> None:
    raw = bytearray(volume_file.read_bytes())
    raw[92:96] = struct.pack("<i", 80)
    path = tmp_path / "e.mrc"
    path.write_bytes(bytes(raw[:1024]) + b"x" * 80 + bytes(raw[1024:]))
    assert np.array_equal(read_mrc(path)[0], read_mrc(volume_file)[0])
    assert np.array_equal(MrcStack(path).read(slice(None)), read_mrc(volume_file)[0])


@pytest.mark.parametrize("mode", [3, 4, 7, 102, -1])
def test_fault_6_mode_lists_what_is_supported(tmp_path: Path, volume_file: Path, mode: int) -> None:
    path = patched(volume_file, tmp_path / "m.mrc", 12, struct.pack("<i", mode))
    assert "0, 1, 2, 6, 12, 101" in both_ways(path)[0]


def test_fault_7_trailing_bytes_warn_once(tmp_path: Path, volume_file: Path) -> None:
    path = tmp_path / "t.mrc"
    path.write_bytes(volume_file.read_bytes() + b"xyz")
    with pytest.warns(UserWarning, match="3 bytes after the data") as caught:
        data, _ = read_mrc(path)
    assert len(caught) == 1
    assert np.array_equal(data, read_mrc(volume_file)[0])


@pytest.mark.parametrize("order", ["little", "big"])
@pytest.mark.parametrize(
    ("identity", "said"),
    [
        (b"PAM \x44\x44", "MAP id"),
        (b"MAP \x99\x99", "machine stamp"),
        (b"MAP \x44\x20", "machine stamp"),
        (bytes(6), "MAP id .* and machine stamp"),
        (b"MAP \x11\x11", "machine stamp"),  # of the other byte order
    ],
)
def test_fault_8_identity(
    tmp_path: Path, volume_file: Path, identity: bytes, said: str, order: str
) -> None:
    """A file whose size and mode fit is read, in the byte order that fits, with one warning."""
    path = patched(volume_file, tmp_path / "i.mrc", 208, identity)
    want = read_mrc(volume_file)[0]
    if order == "big":
        raw = path.read_bytes()
        words = np.frombuffer(raw[:208] + raw[216:], "<u4").astype(">u4").tobytes()
        swapped = identity.replace(b"\x11\x11", b"\x44\x44")
        path.write_bytes(words[:208] + swapped + raw[214:216] + words[208:])
        if identity[4:] == b"\x44\x44":
            said = "MAP id .* and machine stamp"
    for reader in (lambda: read_mrc(path)[0], lambda: MrcStack(path).read(slice(None))):
        with pytest.warns(UserWarning, match=f"{said} .*{order}-endian") as caught:
            assert np.array_equal(reader(), want)
        assert len(caught) == 1


def test_fault_8_what_does_not_fit_is_no_mrc_file(tmp_path: Path, volume_file: Path) -> None:
    path = tmp_path / "text.mrc"
    path.write_bytes(b"no MRC file, however long it may be. " * 100)
    assert "is it an MRC file" in both_ways(path)[0]
    patched(volume_file, path, 208, bytes(8))
    path.write_bytes(path.read_bytes()[:-1])
    assert "complete?" in both_ways(path)[0]


@pytest.mark.parametrize(
    ("stamp", "flags", "highest", "unsigned"),
    [
        (0, 0, 100.0, False),
        (1146047817, 0, 0.0, True),
        (1146047817, 1, 250.0, False),
        (1146047817, 6, 0.0, True),
        (0, 0, 250.0, True),  # a header whose maximum no signed byte has
    ],
)
def test_bytes_are_signed_as_the_header_says(
    tmp_path: Path, stamp: int, flags: int, highest: float, unsigned: bool
) -> None:
    path = tmp_path / "b.mrc"
    data = np.arange(2 * 8 * 16).reshape(2, 8, 16).astype(np.uint8)
    write_mrc(path, data.view(np.int8), 1.0, mode=0)
    patched(path, path, 152, struct.pack("<2i", stamp, flags))
    patched(path, path, 76, struct.pack("<2f", 0.0, highest))
    want = data if unsigned else data.view(np.int8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert np.array_equal(read_mrc(path)[0], want)
        assert np.array_equal(MrcStack(path).read([1, 0]), want[[1, 0]].astype(np.float32))


def test_bytes_of_two_values_each_are_refused_in_mode_0(tmp_path: Path) -> None:
    path = tmp_path / "b.mrc"
    write_mrc(path, np.zeros((2, 4, 4)), 1.0, mode=0)
    patched(path, path, 152, struct.pack("<2i", 1146047817, 16))
    assert "imodFlags" in both_ways(path)[0]


@pytest.mark.parametrize("nx", [6, 7])
def test_mode_101_packs_two_values_in_a_byte(tmp_path: Path, nx: int) -> None:
    path = tmp_path / "p.mrcs"
    data = RNG.integers(0, 16, size=(3, 5, nx)).astype(np.uint8)
    padded = np.zeros((3, 5, 8), np.uint8)
    padded[..., :nx] = data
    packed = (padded[..., ::2] | padded[..., 1::2] << 4)[..., : (nx + 1) // 2]
    write_mrc(path, packed.view(np.int8), 1.0, is_stack=True, mode=0)
    patched(path, path, 0, struct.pack("<4i", nx, 5, 3, 101))
    assert np.array_equal(read_mrc(path)[0], data)
    stack = MrcStack(path)
    assert stack.shape == data.shape
    assert np.array_equal(stack.read([2, 0]), data[[2, 0]].astype(np.float32))
    assert np.array_equal(stack.read_region(1, slice(1, 4), slice(2, 5)), data[1, 1:4, 2:5])
    path.write_bytes(path.read_bytes()[:-1])
    assert "truncated" in both_ways(path)[0]


def test_fault_9_gzip(tmp_path: Path, volume_file: Path) -> None:
    raw, path = volume_file.read_bytes(), tmp_path / "z.mrc.gz"
    whole = gzip.compress(raw)
    for cut in (0, 5, 60, len(whole) // 2, len(whole) - 20):
        path.write_bytes(whole[: max(cut, 2)])
        with pytest.raises(InputError, match=r"truncated|header"):
            read_mrc(path)
    damaged = bytearray(whole)
    damaged[len(whole) // 2] ^= 0xFF
    path.write_bytes(damaged)
    with pytest.raises(InputError):
        read_mrc(path)
    path.write_bytes(gzip.compress(raw[:-8]))
    with pytest.raises(InputError, match="decompresses to 856"):
        read_mrc(path)


def test_fault_9_bomb_is_never_unpacked(tmp_path: Path, volume_file: Path) -> None:
    path = tmp_path / "bomb.mrc.gz"
    path.write_bytes(gzip.compress(volume_file.read_bytes() + bytes(200_000_000), compresslevel=1))
    tracemalloc.start()
    with pytest.raises(InputError, match="go on past"):
        read_mrc(path)
    assert tracemalloc.get_traced_memory()[1] < 2e7
    tracemalloc.stop()


@pytest.mark.parametrize("cella", [0.0, float("nan"), -5.0, float("inf")])
def test_fault_10_no_pixel_size(tmp_path: Path, volume_file: Path, cella: float) -> None:
    path = patched(volume_file, tmp_path / "p.mrc", 40, struct.pack("<f", cella))
    header = read_header(path)
    assert header.pixel_size_angstrom is None
    with pytest.raises(InputError, match="`pixel_size_angstrom`"):
        header.pixel_size_or(None)
    assert header.pixel_size_or(1.7) == 1.7


def test_missing_file_and_misuse(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        read_mrc(tmp_path / "absent.mrc")
    with pytest.raises(ValueError, match="pixel size"):
        write_mrc(tmp_path / "a.mrc", np.ones((2, 2, 2)), 0.0)
    with pytest.raises(ValueError, match="overflow"):
        write_mrc(tmp_path / "a.mrc", np.full((2, 2, 2), 1e6), 1.0, mode=12)
    with pytest.raises(ValueError, match="mode"):
        write_mrc(tmp_path / "a.mrc", np.ones((2, 2, 2)), 1.0, mode=1)
    write_mrc(tmp_path / "a.mrc", np.ones((2, 3)), 1.0)
    stack = MrcStack(tmp_path / "a.mrc")
    assert stack.shape == (1, 2, 3)
    with pytest.raises(ValueError, match="holds 1 images"):
        stack.read([1])
    with pytest.raises(ValueError, match="holds 1 images"):
        stack.read([-1])
    assert not list(tmp_path.glob(".*"))


def test_real_files(shared_data: Path) -> None:
    particles = MrcStack(shared_data / "empiar10061" / "particles_192.mrcs")
    assert particles.shape == (101, 192, 192)
    assert particles.header.mode == 12
    assert particles.pixel_size_angstrom == pytest.approx(1.274)
    with mrcfile.mmap(shared_data / "empiar10061" / "particles_192.mrcs") as oracle:
        assert np.array_equal(particles.read([100, 3]), oracle.data[[100, 3]].astype(np.float32))
    ribosome, header = read_mrc(shared_data / "maps" / "ribosome70S_65.mrc")
    assert ribosome.shape == (65, 65, 65)
    assert header.pixel_size_angstrom is None
    legacy = shared_data / "relion" / "relion31.mrcs"
    with pytest.warns(UserWarning, match="MAP id"):
        assert len(MrcStack(legacy)) == 5
