"""Read numbers of any number of bits from bytes."""


class BitReader:
    """Reads bits from the beginning of `data`.

    Args:
        data: the bytes.
        lowest_first: whether the first bit is the lowest bit of a byte, and of a number. Otherwise the highest.
    """

    def __init__(self, data: bytes, lowest_first: bool = False) -> None:
        self.data, self.lowest_first, self.position = data, lowest_first, 0

    def take(self, count: int) -> int:
        """Return the next bits as a number.

        Raises:
            ValueError: if the data ends.
        """
        first, last = self.position // 8, -(-(self.position + count) // 8)
        if last > len(self.data):
            raise ValueError("the header is truncated")
        chunk = self.data[first:last]
        if self.lowest_first:
            number = int.from_bytes(chunk, "little") >> self.position % 8
        else:
            number = int.from_bytes(chunk, "big") >> 8 * last - self.position - count
        self.position += count
        return number & (1 << count) - 1

    def skip(self, count: int) -> None:
        """Skip bits."""
        self.position += count

    def exp_golomb(self) -> int:
        """Return the next number in Exp-Golomb code: ITU-T H.265, 9.2."""
        zeros = 0
        while not self.take(1):
            zeros += 1
            if zeros > 32:
                raise ValueError("a number of the header is too large")
        return (1 << zeros) - 1 + self.take(zeros)
