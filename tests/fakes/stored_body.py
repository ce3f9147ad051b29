"""A Body over octets that can turn out damaged, and keeps count of what is open."""

from __future__ import annotations

from posthouse.errors import BodyDamaged


class StoredBody:
    """`damaged_at`: reading beyond that many octets raises BodyDamaged. size: what it claims."""

    def __init__(
        self, octets: bytes, *, damaged_at: int | None = None, size: int | None = None
    ) -> None:
        self.octets = octets
        self.size_bytes = len(octets) if size is None else size
        self.damaged_at = damaged_at
        self.at = 0
        self.closed = 0

    async def read(self, limit: int) -> bytes:
        assert not self.closed
        piece = self.octets[self.at : self.at + limit]
        self.at += len(piece)
        if self.damaged_at is not None and self.at > self.damaged_at:
            raise BodyDamaged("checksum does not match")
        return piece

    def close(self) -> None:
        self.closed += 1
