"""libtidegate through ctypes, for tests: no logic of its own. Errors become TideError."""

import ctypes as c

import harness

LIBRARY = harness.BUILD / "libclient" / ".libs" / "libtidegate.so"
EAGAIN, EINVAL, ETOOBIG, ENOMEM, ENODAEMON, ECLOSED, EVERSION, ENOPOOL, ELIMIT, EDENIED, EFORKED, EBROKEN, ETIMEOUT, \
    EBUSY, ENOTFOUND, ESYSTEM, EPROTOCOL, ELATE, ESTOPPING = range(1, 20)
QUIET, RETAIN = 1, 2
OUTCOMES = (None, "delivered", "sent", "rejected", "expired", "unknown", "cancelled")


class Header(c.Structure):
    _fields_ = [("name", c.c_char_p), ("value", c.c_char_p), ("name_len", c.c_size_t), ("value_len", c.c_size_t)]


class Message(c.Structure):
    _fields_ = [("topic", c.c_char_p), ("topic_len", c.c_size_t), ("key", c.c_char_p), ("key_len", c.c_size_t),
                ("body", c.c_char_p), ("body_len", c.c_size_t), ("headers", c.POINTER(Header)),
                ("header_count", c.c_size_t), ("tag", c.c_uint64), ("timeout_ms", c.c_uint32), ("expiry_ms", c.c_uint32),
                ("flags", c.c_uint32)]


class Completion(c.Structure):
    _fields_ = [("position", c.c_uint64), ("tag", c.c_uint64), ("reference", c.c_uint64), ("elapsed_us", c.c_uint64),
                ("code", c.c_uint32), ("outcome", c.c_uint8), ("attempts", c.c_uint8), ("reserved", c.c_uint8 * 2)]

    @property
    def name(self):
        return OUTCOMES[self.outcome]


class ClientOptions(c.Structure):
    _fields_ = [("socket", c.c_char_p), ("name", c.c_char_p), ("timeout_ms", c.c_uint32)]


class LaneOptions(c.Structure):
    _fields_ = [("ring_bytes", c.c_uint64), ("completions", c.c_uint32), ("spin_us", c.c_uint32)]


class LaneInfo(c.Structure):
    _fields_ = [("lane_id", c.c_uint64), ("ring_bytes", c.c_uint64), ("record_bytes", c.c_uint64), ("away_ms", c.c_uint64),
                ("completions", c.c_uint32), ("timeout_ms", c.c_uint32)]


def load():
    lib = c.CDLL(str(LIBRARY))
    pointer, out = c.c_void_p, c.POINTER(c.c_uint64)
    for name, result, arguments in (
            ("tg_client_open", c.c_int, (c.POINTER(pointer), c.POINTER(ClientOptions))),
            ("tg_client_close", None, (pointer,)),
            ("tg_client_detail", c.c_char_p, (pointer,)),
            ("tg_lane_open", c.c_int, (pointer, c.POINTER(pointer), c.c_char_p, c.POINTER(LaneOptions))),
            ("tg_lane_info", c.c_int, (pointer, c.POINTER(LaneInfo))),
            ("tg_lane_close", c.c_int, (pointer, c.c_int)),
            ("tg_publish", c.c_int, (pointer, c.POINTER(Message), out)),
            ("tg_publish_batch", c.c_int, (pointer, c.POINTER(Message), c.c_size_t, out)),
            ("tg_reserve", c.c_int, (pointer, c.POINTER(Message), c.POINTER(pointer))),
            ("tg_commit", c.c_int, (pointer, c.c_size_t, out)),
            ("tg_abort", c.c_int, (pointer,)),
            ("tg_poll", c.c_int, (pointer, c.POINTER(Completion), c.c_size_t)),
            ("tg_wait", c.c_int, (pointer, c.c_int)),
            ("tg_fd", c.c_int, (pointer,)),
            ("tg_writable", c.c_int, (pointer,)),
            ("tg_cancel", c.c_int, (pointer, c.c_uint64)),
            ("tg_flush", c.c_int, (pointer, c.c_int)),
            ("tg_publish_sync", c.c_int, (pointer, c.POINTER(Message), c.c_int, c.POINTER(Completion))),
            ("tg_reason", c.c_int, (pointer, c.c_char_p, c.c_size_t, c.POINTER(c.c_uint32))),
            ("tg_outstanding", c.c_int64, (pointer,)),
            ("tg_strerror", c.c_char_p, (c.c_int,)),
            ("tg_version", c.c_char_p, ())):
        function = getattr(lib, name)
        function.restype = result
        function.argtypes = arguments
    return lib


class TideError(Exception):
    def __init__(self, code, text):
        super().__init__(text)
        self.code = code


class Client:
    def __init__(self, socket, name="test"):
        self.lib = load()
        self.handle = c.c_void_p()
        self.check(self.lib.tg_client_open(c.byref(self.handle), c.byref(ClientOptions(str(socket).encode(), name.encode()))))

    def check(self, result):
        if result < 0:
            detail = self.lib.tg_client_detail(self.handle) if self.handle else b""
            raise TideError(-result, f"{self.lib.tg_strerror(result).decode()} ({(detail or b'').decode()})")
        return result

    def lane(self, pool="events", ring_bytes=0, completions=0, spin_us=0):
        return Lane(self, pool, LaneOptions(ring_bytes, completions, spin_us))

    def close(self):
        self.lib.tg_client_close(self.handle)
        self.handle = None


class Lane:
    def __init__(self, client, pool, options):
        self.client = client
        self.lib = client.lib
        self.handle = c.c_void_p()
        client.check(self.lib.tg_lane_open(client.handle, c.byref(self.handle), pool.encode(), c.byref(options)))

    @staticmethod
    def message(body=b"", topic=b"t", tag=0, timeout_ms=0, expiry_ms=0, flags=0):
        return Message(topic=topic, topic_len=len(topic), body=body, body_len=len(body), tag=tag, timeout_ms=timeout_ms,
                       expiry_ms=expiry_ms, flags=flags)

    def publish(self, body=b"", **options):
        position = c.c_uint64()
        self.client.check(self.lib.tg_publish(self.handle, c.byref(self.message(body, **options)), c.byref(position)))
        return position.value

    def publish_sync(self, body=b"", timeout_ms=10000, **options):
        completion = Completion()
        self.client.check(self.lib.tg_publish_sync(self.handle, c.byref(self.message(body, **options)), timeout_ms,
                                                   c.byref(completion)))
        return completion

    def reserve(self, size, **options):
        at = c.c_void_p()
        message = self.message(**options)
        message.body_len = size
        self.client.check(self.lib.tg_reserve(self.handle, c.byref(message), c.byref(at)))
        return at.value

    def commit(self, size):
        position = c.c_uint64()
        self.client.check(self.lib.tg_commit(self.handle, size, c.byref(position)))
        return position.value

    def abort(self):
        self.client.check(self.lib.tg_abort(self.handle))

    def poll(self, most=64):
        room = (Completion * most)()
        return list(room[:self.client.check(self.lib.tg_poll(self.handle, room, most))])

    def collect(self, count, timeout_ms=10000):
        """Waits for so many completions."""
        got = []
        while len(got) < count:
            more = self.poll()
            got += more
            if not more:
                self.wait(timeout_ms)
        return got

    def wait(self, timeout_ms):
        return self.client.check(self.lib.tg_wait(self.handle, timeout_ms))

    def flush(self, timeout_ms=10000):
        return self.client.check(self.lib.tg_flush(self.handle, timeout_ms))

    def cancel(self, position):
        return self.client.check(self.lib.tg_cancel(self.handle, position))

    def fd(self):
        return self.client.check(self.lib.tg_fd(self.handle))

    def writable(self):
        return self.client.check(self.lib.tg_writable(self.handle))

    def outstanding(self):
        return self.lib.tg_outstanding(self.handle)

    def reason(self):
        text, code = c.create_string_buffer(256), c.c_uint32()
        length = self.lib.tg_reason(self.handle, text, len(text), c.byref(code))
        return text.value.decode() if length > 0 else "", code.value

    def info(self):
        info = LaneInfo()
        self.client.check(self.lib.tg_lane_info(self.handle, c.byref(info)))
        return info

    def close(self, timeout_ms=1000):
        return self.client.check(self.lib.tg_lane_close(self.handle, timeout_ms))
