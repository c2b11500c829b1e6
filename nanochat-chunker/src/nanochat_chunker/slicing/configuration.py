"""The stated preprocessor configuration, and the value of `#if` expressions under it.

Linux, x86-64, clang 14 with libstdc++, -std=c++20, nothing else defined: what a document is meant
to be compiled with. Names that no header defines are 0, as the standard says.
"""

import re
from collections.abc import Mapping
from functools import cache
from types import MappingProxyType

from nanochat_chunker.slicing import compiler
from nanochat_chunker.slicing.macros import Lookup, Macro, Table, expand

# Macros of the system's headers that conditions ask for.
_OF_HEADERS = """
__FLOAT_WORD_ORDER__=1234 __BYTE_ORDER=1234 __LITTLE_ENDIAN=1234 __BIG_ENDIAN=4321 BYTE_ORDER=1234
LITTLE_ENDIAN=1234 BIG_ENDIAN=4321 INT_MAX=2147483647 UINT_MAX=4294967295U
LONG_MAX=9223372036854775807L ULONG_MAX=18446744073709551615UL LLONG_MAX=9223372036854775807LL
ULLONG_MAX=18446744073709551615ULL SIZE_MAX=18446744073709551615UL SHRT_MAX=32767 USHRT_MAX=65535
INT64_MAX=9223372036854775807L UINT64_MAX=18446744073709551615UL INT32_MAX=2147483647
UINT32_MAX=4294967295U UINTPTR_MAX=18446744073709551615UL CHAR_BIT=8 CHAR_MAX=127 CHAR_MIN=-128
FLT_RADIX=2 DBL_MANT_DIG=53 LDBL_MANT_DIG=64 FLT_MANT_DIG=24 FLT_EVAL_METHOD=0 RAND_MAX=2147483647
PATH_MAX=4096 _POSIX_VERSION=200809L _POSIX_THREADS=200809L _POSIX_TIMERS=200809L
_POSIX_MAPPED_FILES=200809L _POSIX_C_SOURCE=200809L _XOPEN_SOURCE=700 _DEFAULT_SOURCE=1
__GLIBC__=2 __GLIBC_MINOR__=36 __GLIBCXX__=20220819 _GLIBCXX_RELEASE=12 __USE_GNU=1
_GLIBCXX_USE_CXX11_ABI=1 _GLIBCXX_HAVE_PTHREAD=1 O_CLOEXEC=02000000 O_DIRECT=00040000
MAP_ANONYMOUS=0x20 MAP_ANON=0x20 MAP_POPULATE=0x08000 CLOCK_MONOTONIC=1 CLOCK_REALTIME=0
SOCK_CLOEXEC=02000000 MSG_NOSIGNAL=0x4000 SO_REUSEPORT=15 EWOULDBLOCK=11 EAGAIN=11 AF_INET6=10
IPV6_V6ONLY=26 SIGPIPE=13 FALLOC_FL_KEEP_SIZE=1 __COUNTER__=0 __cpp_lib_string_view=201803L
__cpp_lib_optional=201606L __cpp_lib_variant=201606L __cpp_lib_any=201606L
__cpp_lib_filesystem=201703L __cpp_lib_make_unique=201304L __cpp_lib_byte=201603L
__cpp_lib_void_t=201411L __cpp_lib_bool_constant=201505L __cpp_lib_integer_sequence=201304L
__cpp_lib_shared_mutex=201505L __cpp_lib_span=202002L __cpp_lib_is_constant_evaluated=201811L
__cpp_lib_bit_cast=201806L __cpp_lib_bitops=201907L __cpp_lib_three_way_comparison=201907L
__cpp_lib_exchange_function=201304L __cpp_lib_uncaught_exceptions=201411L
__cpp_lib_launder=201606L __cpp_lib_invoke=201411L __cpp_lib_apply=201603L __cpp_lib_clamp=201603L
__cpp_lib_to_chars=201611L __cpp_lib_is_swappable=201603L __cpp_lib_is_final=201402L
__cpp_lib_hypot=201603L __cpp_lib_is_invocable=201703L __cpp_lib_result_of_sfinae=201210L
"""


@cache
def predefined() -> Mapping[str, Macro]:
    """What is defined before a file is read: by the compiler, and as if by the system's headers."""
    pairs = (pair.split("=", 1) for pair in _OF_HEADERS.split())
    found = {name: Macro(name, None, value) for name, value in pairs}
    return MappingProxyType({**found, **compiler.predefined()})


STANDARD_HEADERS = frozenset(
    "algorithm any array atomic barrier bit bitset cassert ccomplex cctype cerrno cfenv cfloat "
    "charconv chrono cinttypes climits clocale cmath codecvt compare complex concepts "
    "condition_variable coroutine csetjmp csignal cstdarg cstddef cstdint cstdio cstdlib cstring "
    "ctime cuchar cwchar cwctype deque exception execution filesystem forward_list fstream "
    "functional future initializer_list iomanip ios iosfwd iostream istream iterator latch limits "
    "list locale map memory memory_resource mutex new numbers numeric optional ostream queue "
    "random ranges ratio regex scoped_allocator semaphore set shared_mutex source_location span "
    "sstream stack stdexcept stop_token streambuf string string_view strstream syncstream "
    "system_error thread tuple type_traits typeindex typeinfo unordered_map unordered_set utility "
    "valarray variant vector version cxxabi.h "
    "assert.h complex.h ctype.h errno.h fenv.h float.h inttypes.h iso646.h limits.h locale.h "
    "math.h setjmp.h signal.h stdalign.h stdarg.h stdatomic.h stdbool.h stddef.h stdint.h stdio.h "
    "stdlib.h string.h tgmath.h time.h uchar.h wchar.h wctype.h strings.h "
    "aio.h alloca.h arpa/inet.h byteswap.h cpio.h dirent.h dlfcn.h elf.h endian.h err.h "
    "execinfo.h fcntl.h fnmatch.h ftw.h getopt.h glob.h grp.h iconv.h ifaddrs.h langinfo.h "
    "libgen.h libintl.h link.h linux/falloc.h linux/fs.h linux/futex.h linux/limits.h "
    "linux/magic.h linux/types.h linux/unistd.h linux/version.h malloc.h memory.h mntent.h "
    "monetary.h mqueue.h net/if.h netdb.h net/ethernet.h net/if_arp.h netinet/in.h "
    "netinet/in_systm.h netinet/ip.h netinet/ip_icmp.h netinet/tcp.h nl_types.h paths.h poll.h "
    "pthread.h pty.h pwd.h regex.h sched.h semaphore.h shadow.h spawn.h stropts.h sys/auxv.h "
    "sys/cdefs.h sys/epoll.h sys/eventfd.h sys/file.h sys/inotify.h sys/ioctl.h sys/ipc.h "
    "sys/mman.h sys/mount.h sys/msg.h sys/param.h sys/personality.h sys/poll.h sys/prctl.h "
    "sys/procfs.h sys/ptrace.h sys/random.h sys/reg.h sys/resource.h sys/select.h sys/sem.h "
    "sys/sendfile.h sys/shm.h sys/signal.h sys/socket.h sys/stat.h sys/statfs.h sys/statvfs.h "
    "sys/syscall.h sys/sysinfo.h sys/sysmacros.h sys/time.h sys/timerfd.h sys/times.h "
    "sys/types.h sys/ucontext.h sys/uio.h sys/un.h sys/user.h sys/utsname.h sys/vfs.h sys/wait.h "
    "syscall.h sysexits.h syslog.h tar.h termios.h ucontext.h ulimit.h unistd.h utime.h utmp.h "
    "utmpx.h values.h wait.h wordexp.h features.h "
    "immintrin.h emmintrin.h xmmintrin.h pmmintrin.h tmmintrin.h smmintrin.h nmmintrin.h "
    "wmmintrin.h x86intrin.h cpuid.h mm_malloc.h x86gprintrin.h adxintrin.h "
    "ext/hash_map ext/hash_set bits/stdc++.h experimental/filesystem experimental/optional "
    "experimental/string_view".split()
)

# Headers of other systems: what includes them under this configuration is not for it.
ELSEWHERE = frozenset(
    "windows.h Windows.h winsock2.h winsock.h ws2tcpip.h windef.h winbase.h io.h direct.h "
    "TargetConditionals.h mach/mach.h mach/mach_time.h mach-o/dyld.h "
    "CoreFoundation/CoreFoundation.h "
    "Availability.h emscripten.h sys/event.h sys/sysctl.h vxWorks.h zircon/types.h "
    "android/log.h jni.h hip/hip_runtime.h arm_neon.h arm_sve.h altivec.h CL/sycl.hpp".split()
)

_PLATFORM = re.compile(
    r"(?:\w+_)?(?:(?:PLATFORM|OS|TARGET|LIB_IO|PORT)_(?:POSIX|LINUX|UNIX)|OS_FAMILY_UNIX)$"
)
_HAVE_HEADER = re.compile(r"(?:\w+_)?HAVE_(\w+)_H$")
_HAVE_FUNCTION = re.compile(
    r"HAVE_(?:MMAP|GETTIMEOFDAY|STRERROR_R|SNPRINTF|VSNPRINTF|STRTOLL|STRTOULL|PTHREAD|PTHREADS"
    r"|FDATASYNC|FALLOCATE|CLOCK_GETTIME|NANOSLEEP|STDINT|INTTYPES|LONG_LONG|MEMMOVE|MEMSET"
    r"|STRDUP|GETPAGESIZE|SYSCONF|BUILTIN_EXPECT|BUILTIN_CTZ|BUILTIN_PREFETCH|ATTRIBUTE_\w+"
    r"|FUNC_MMAP|FUNC_SYSCONF|VISIBILITY|O_CLOEXEC|UNISTD|SYS_UIO|RWLOCK)$"
)


def names_platform(name: str) -> bool:
    """Whether a macro says that the platform is Linux, as build systems define it."""
    return _PLATFORM.match(name) is not None


def from_build_system(name: str) -> Macro | None:
    """A macro that no file defines as a build on Linux would: its platform, headers it has."""
    if names_platform(name):
        return Macro(name, None, "1")
    found = _HAVE_HEADER.match(name)
    if found is not None:
        header = found[1].lower()
        if f"{header}.h" in STANDARD_HEADERS or f"{header.replace('_', '/')}.h" in STANDARD_HEADERS:
            return Macro(name, None, "1")
    return Macro(name, None, "1") if _HAVE_FUNCTION.match(name) else None


_DEFINED = re.compile(r"\bdefined\s*(?:\(\s*([A-Za-z_]\w*)\s*\)|([A-Za-z_]\w*))")
_HAS = re.compile(
    r"\b__has_(include|include_next|cpp_attribute|attribute|builtin|feature|extension|warning"
    r"|declspec_attribute|constexpr_builtin|c_attribute|keyword)\b\s*\(\s*([^()]*?)\s*\)"
)
_HAS_NAMES = frozenset(
    "__has_include __has_include_next __has_cpp_attribute __has_attribute __has_builtin "
    "__has_feature __has_extension __has_warning __has_declspec_attribute "
    "__has_constexpr_builtin".split()
)
_EXPRESSION = re.compile(
    r"\s*(0[xX][0-9a-fA-F']+[uUlL]*|[0-9][0-9']*[uUlLzZ]*|'(?:\\.|[^'\\])+'|[A-Za-z_]\w*"
    r"|&&|\|\||<<|>>|[<>=!]=|[-+*/%<>!~&|^?:(),])"
)
_LEVELS: dict[str, int] = {
    "||": 1, "&&": 2, "|": 3, "^": 4, "&": 5, "==": 6, "!=": 6, "<": 7, ">": 7, "<=": 7, ">=": 7,
    "<<": 8, ">>": 8, "+": 9, "-": 9, "*": 10, "/": 10, "%": 10,
}  # fmt: skip


def is_defined(name: str, lookup: Lookup) -> bool:
    """What `#ifdef name` says."""
    return lookup(name) is not None or name in _HAS_NAMES


def evaluate(expression: str, lookup: Lookup) -> bool:
    """Whether `#if expression` is taken. What cannot be evaluated is not."""
    text = _DEFINED.sub(
        lambda found: " 1 " if is_defined(found[1] or found[2], lookup) else " 0 ", expression
    )
    text = _HAS.sub(lambda found: _has(found[1], found[2]), text)
    if len(text) > 4000:
        return False
    text = expand(text, Table(lookup))
    text = _DEFINED.sub(
        lambda found: " 1 " if is_defined(found[1] or found[2], lookup) else " 0 ", text
    )
    text = _HAS.sub(lambda found: _has(found[1], found[2]), text)
    tokens = _EXPRESSION.findall(text)
    if len(tokens) > 1000:
        return False
    try:
        return _Parser(tokens).value() != 0
    except (ValueError, IndexError, ZeroDivisionError, OverflowError, RecursionError):
        return False


def _has(what: str, argument: str) -> str:
    if what in ("include", "include_next"):
        return " 1 " if argument.strip('<>" ') in STANDARD_HEADERS else " 0 "
    name = argument.strip("_ ") if what == "attribute" else argument.strip()
    if what in ("attribute", "c_attribute"):
        return " 1 " if name in compiler.known("attributes") else " 0 "
    if what == "cpp_attribute":
        return f" {compiler.known('cpp_attributes').get(name, '0')} "
    if what == "builtin":
        return " 1 " if argument.startswith(("__builtin_", "__is_")) else " 0 "
    if what in ("feature", "extension") and name in compiler.known("features"):
        return " 1 "
    if what == "extension":
        return " 1 " if name in compiler.known("extensions") else " 0 "
    return " 0 "


class _Parser:
    """Precedence climbing over integer expressions."""

    def __init__(self, tokens: list[str]) -> None:
        self._tokens = tokens
        self._at = 0

    def value(self) -> int:
        return self._ternary(0)

    def _peek(self) -> str:
        return self._tokens[self._at] if self._at < len(self._tokens) else ""

    def _take(self) -> str:
        token = self._tokens[self._at]
        self._at += 1
        return token

    def _ternary(self, depth: int) -> int:
        condition = self._binary(1, depth + 1)
        if self._peek() != "?":
            return condition
        self._take()
        first = self._ternary(depth + 1)
        if self._take() != ":":
            raise ValueError
        second = self._ternary(depth + 1)
        return first if condition else second

    def _binary(self, level: int, depth: int) -> int:
        left = self._unary(depth)
        while True:
            operator = self._peek()
            here = _LEVELS.get(operator, 0)
            if here < level:
                return left
            self._take()
            right = self._binary(here + 1, depth + 1)
            left = _apply(operator, left, right)

    def _unary(self, depth: int) -> int:
        if depth > 200:
            raise ValueError
        token = self._take()
        if token == "!":
            return int(not self._unary(depth + 1))
        if token == "-":
            return -self._unary(depth + 1)
        if token == "+":
            return self._unary(depth + 1)
        if token == "~":
            return ~self._unary(depth + 1)
        if token == "(":
            value = self._ternary(depth + 1)
            if self._take() != ")":
                raise ValueError
            return value
        if token[0].isdigit():
            digits = token.rstrip("uUlLzZ").replace("'", "")
            if digits[:2] in ("0x", "0X"):
                return int(digits, 16)
            return int(digits, 8) if len(digits) > 1 and digits[0] == "0" else int(digits)
        if token[0] == "'":
            return ord(token[-2])
        if token[0].isalpha() or token[0] == "_":
            if self._peek() == "(":  # a function-like macro nobody defines
                raise ValueError
            return int(token == "true")
        raise ValueError


def _apply(operator: str, left: int, right: int) -> int:
    match operator:
        case "||":
            return int(bool(left) or bool(right))
        case "&&":
            return int(bool(left) and bool(right))
        case "==":
            return int(left == right)
        case "!=":
            return int(left != right)
        case "<":
            return int(left < right)
        case ">":
            return int(left > right)
        case "<=":
            return int(left <= right)
        case ">=":
            return int(left >= right)
        case "+":
            return left + right
        case "-":
            return left - right
        case "*":
            return left * right
        case "/":
            return int(left / right) if right else 0
        case "%":
            return left % right if right else 0
        case "<<":
            return left << min(right, 64)
        case ">>":
            return left >> min(right, 64)
        case "&":
            return left & right
        case "|":
            return left | right
    return left ^ right
