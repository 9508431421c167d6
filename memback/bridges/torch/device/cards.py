"""The cards."""
from dataclasses import dataclass
@dataclass(frozen=True)
class Card:
    name: str
    capability: tuple[int, int]
    memory_bytes: int
    multiprocessors: int
_C = {c.name: c for c in (Card("h200",(9,0),150754820096,132),Card("a100-40gb",(8,0),42298834944,108),Card("t4",(7,5),15637086208,40),Card("rtx4090",(8,9),25386352640,128))}
def card(name: str) -> Card:
    return _C[name.removeprefix("cuda:")]
