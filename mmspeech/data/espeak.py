"""espeak-ng through ctypes, from the wheel `espeakng_loader`: one engine per process, for sound and for phones."""

import ctypes
import functools
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from mmspeech.errors import BadItem, UserError


class _Id(ctypes.Union):
    _fields_ = (("number", ctypes.c_int), ("name", ctypes.c_char_p), ("string", ctypes.c_char * 8))


class _Event(ctypes.Structure):
    _fields_ = (
        ("type", ctypes.c_int), ("unique_identifier", ctypes.c_uint), ("text_position", ctypes.c_int),
        ("length", ctypes.c_int), ("audio_position", ctypes.c_int), ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p), ("id", _Id),
    )  # fmt: skip


@dataclass
class Engine:
    """The library and what its callback leaves."""

    library: ctypes.CDLL
    rate_hz: int
    samples: list[bytes]  # filled by the callback
    events: list[tuple[int, int, int, bytes]]  # kind, position in the text, sample, phone
    callback: Callable  # kept alive as long as the library may call it
    voice: str = ""  # set last
    busy: threading.Lock = field(default_factory=threading.Lock)  # its state is global, calls let other threads run

    def set_voice(self, name: str) -> bool:
        """Set it, which resets rate and pitch; False if there is no such voice."""
        self.voice = name if self.library.espeak_SetVoiceByName(name.encode()) == 0 else ""
        return bool(self.voice)


@functools.cache
def start_engine() -> Engine:
    """The library, once per process: it has one global state. Raises UserError if the wheel is not installed."""
    try:
        import espeakng_loader
    except ImportError as error:
        raise UserError(
            "espeak-ng: the package espeakng_loader is missing, which speaks and knows phones; "
            "pip install mmspeech[synth]"
        ) from error
    library = ctypes.CDLL(espeakng_loader.get_library_path())
    samples: list[bytes] = []
    events: list[tuple[int, int, int, bytes]] = []

    @ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.POINTER(_Event))
    def callback(wav: int | None, count: int, marks: "ctypes._Pointer[_Event]") -> int:
        if wav and count:
            samples.append(ctypes.string_at(wav, 2 * count))
        i = 0
        while (mark := marks[i]).type != 0:
            events.append((mark.type, mark.text_position, mark.sample, bytes(mark.id.string)))
            i += 1
        return 0

    synchronous, phoneme_events, do_not_exit = 2, 0x1, 0x8000
    rate_hz = library.espeak_Initialize(
        synchronous, 0, str(espeakng_loader.get_data_path()).encode(), phoneme_events | do_not_exit
    )
    if rate_hz <= 0:
        raise UserError(f"espeak-ng: could not read {espeakng_loader.get_data_path()}; reinstall espeakng_loader")
    library.espeak_SetSynthCallback(callback)
    library.espeak_TextToPhonemes.restype = ctypes.c_char_p
    library.espeak_TextToPhonemes.argtypes = [ctypes.POINTER(ctypes.c_char_p), ctypes.c_int, ctypes.c_int]
    return Engine(library, rate_hz, samples, events, callback)


def is_installed() -> bool:
    """Whether the engine can be started."""
    try:
        start_engine()
    except UserError:
        return False
    return True


def phones(word: str, language: str) -> list[str]:
    """The phones of a word in IPA, with marks of stress and length; always the same ones.

    Args:
        language: espeak-ng's code: en-us, es, de, fr, cmn, ...

    Raises:
        UserError: espeak-ng does not know the language, or is not installed.
        BadItem: the word holds a NUL.
    """
    engine = start_engine()
    if "\0" in word:
        raise BadItem(f"{word!r}: holds a NUL character; write the text again")
    utf8, ipa_between_underscores = 1, 0x2 | ord("_") << 8
    rest = ctypes.c_char_p(word.encode())
    said = []
    with engine.busy:
        if engine.voice != language and not engine.set_voice(language):
            raise UserError(f"language {language}: espeak-ng has no such voice; give its code, as in es, de, fr or cmn")
        while rest.value:
            clause = engine.library.espeak_TextToPhonemes(ctypes.byref(rest), utf8, ipa_between_underscores)
            said.append(clause.decode())
    spoken = re.sub(r"\([a-z-]+\)", "", " ".join(said))  # (fr) and the like: the word is read as of that language
    return [phone for phone in re.split(r"[_\s]+", spoken) if phone]
