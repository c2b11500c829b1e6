"""The stated preprocessor configuration, and the value of `#if` expressions under it.

Linux, x86-64, clang 14 with libstdc++, -std=c++20, nothing else defined: what a document is meant
to be compiled with. Names that no header defines are 0, as the standard says.
"""

import re
from collections.abc import Mapping

from nanochat_chunker.slicing.macros import Lookup, Macro, expand

_PREDEFINED = """
__cplusplus=202002L __STDC__=1 __STDC_HOSTED__=1 __STDC_UTF_16__=1 __STDC_UTF_32__=1
__clang__=1 __clang_major__=14 __clang_minor__=0 __clang_patchlevel__=6 __llvm__=1
__GNUC__=4 __GNUC_MINOR__=2 __GNUC_PATCHLEVEL__=1 __GNUG__=4 __GNUC_STDC_INLINE__=1
__GXX_ABI_VERSION=1002 __GXX_EXPERIMENTAL_CXX0X__=1 __GXX_RTTI=1 __GXX_WEAK__=1
__cpp_rtti=199711L __cpp_exceptions=199711L __EXCEPTIONS=1 __DEPRECATED=1
__linux__=1 __linux=1 linux=1 __gnu_linux__=1 __unix__=1 __unix=1 unix=1 __ELF__=1 _GNU_SOURCE=1
__x86_64__=1 __x86_64=1 __amd64__=1 __amd64=1 __k8=1 __k8__=1 _LP64=1 __LP64__=1
__SSE__=1 __SSE2__=1 __SSE_MATH__=1 __SSE2_MATH__=1 __MMX__=1 __FXSR__=1 __SEG_FS=1 __SEG_GS=1
__BYTE_ORDER__=1234 __ORDER_LITTLE_ENDIAN__=1234 __ORDER_BIG_ENDIAN__=4321
__ORDER_PDP_ENDIAN__=3412 __LITTLE_ENDIAN__=1 __FLOAT_WORD_ORDER__=1234
__BYTE_ORDER=1234 __LITTLE_ENDIAN=1234 __BIG_ENDIAN=4321 BYTE_ORDER=1234 LITTLE_ENDIAN=1234
BIG_ENDIAN=4321
__CHAR_BIT__=8 __SIZEOF_INT__=4 __SIZEOF_LONG__=8 __SIZEOF_LONG_LONG__=8 __SIZEOF_POINTER__=8
__SIZEOF_SIZE_T__=8 __SIZEOF_SHORT__=2 __SIZEOF_WCHAR_T__=4 __SIZEOF_INT128__=16
__SIZEOF_FLOAT__=4 __SIZEOF_DOUBLE__=8 __SIZEOF_LONG_DOUBLE__=16 __SIZEOF_PTRDIFF_T__=8
__INT_MAX__=2147483647 __LONG_MAX__=9223372036854775807L __SHRT_MAX__=32767 __SCHAR_MAX__=127
__LONG_LONG_MAX__=9223372036854775807LL __WCHAR_MAX__=2147483647
__INTPTR_WIDTH__=64 __POINTER_WIDTH__=64 __INTMAX_WIDTH__=64 __BITINT_MAXWIDTH__=128
INT_MAX=2147483647 UINT_MAX=4294967295U LONG_MAX=9223372036854775807L
ULONG_MAX=18446744073709551615UL LLONG_MAX=9223372036854775807LL
ULLONG_MAX=18446744073709551615ULL SIZE_MAX=18446744073709551615UL SHRT_MAX=32767 USHRT_MAX=65535
INT64_MAX=9223372036854775807L UINT64_MAX=18446744073709551615UL INT32_MAX=2147483647
UINT32_MAX=4294967295U UINTPTR_MAX=18446744073709551615UL CHAR_BIT=8 CHAR_MAX=127 CHAR_MIN=-128
FLT_RADIX=2 DBL_MANT_DIG=53 LDBL_MANT_DIG=64 FLT_MANT_DIG=24 FLT_EVAL_METHOD=0 RAND_MAX=2147483647
PATH_MAX=4096 _POSIX_VERSION=200809L _POSIX_THREADS=200809L _POSIX_TIMERS=200809L
_POSIX_MAPPED_FILES=200809L _POSIX_C_SOURCE=200809L _XOPEN_SOURCE=700 _DEFAULT_SOURCE=1
__GLIBC__=2 __GLIBC_MINOR__=36 __GLIBCXX__=20220819 _GLIBCXX_RELEASE=12 __USE_GNU=1
_GLIBCXX_USE_CXX11_ABI=1 _GLIBCXX_HAVE_PTHREAD=1
O_CLOEXEC=02000000 O_DIRECT=00040000 MAP_ANONYMOUS=0x20 MAP_ANON=0x20 MAP_POPULATE=0x08000
CLOCK_MONOTONIC=1 CLOCK_REALTIME=0 SOCK_CLOEXEC=02000000 MSG_NOSIGNAL=0x4000 SO_REUSEPORT=15
F_FULLFSYNC_ABSENT=1 EWOULDBLOCK=11 EAGAIN=11 AF_INET6=10 IPV6_V6ONLY=26 SIGPIPE=13
FALLOC_FL_KEEP_SIZE=1 __ATOMIC_RELAXED=0 __ATOMIC_SEQ_CST=5 __VERSION__="14"
__GCC_ATOMIC_INT_LOCK_FREE=2 __GCC_ATOMIC_LLONG_LOCK_FREE=2 __GCC_HAVE_DWARF2_CFI_ASM=1
__GCC_HAVE_SYNC_COMPARE_AND_SWAP_4=1 __GCC_HAVE_SYNC_COMPARE_AND_SWAP_8=1 __PIC__=2 __PIE__=2
__NO_MATH_INLINES=1 __FINITE_MATH_ONLY__=0 __STRICT_ANSI__=1 __STDCPP_THREADS__=1 __COUNTER__=0
__STDCPP_DEFAULT_NEW_ALIGNMENT__=16UL __BIGGEST_ALIGNMENT__=16
__cpp_aggregate_bases=201603L __cpp_aggregate_nsdmi=201304L __cpp_alias_templates=200704L
__cpp_aligned_new=201606L __cpp_attributes=200809L __cpp_binary_literals=201304L
__cpp_capture_star_this=201603L __cpp_char8_t=201811L __cpp_concepts=201907L
__cpp_conditional_explicit=201806L __cpp_constexpr=201907L __cpp_constexpr_in_decltype=201711L
__cpp_constexpr_dynamic_alloc=201907L __cpp_constinit=201907L __cpp_decltype=200707L
__cpp_decltype_auto=201304L __cpp_deduction_guides=201703L __cpp_delegating_constructors=200604L
__cpp_designated_initializers=201707L __cpp_enumerator_attributes=201411L
__cpp_fold_expressions=201603L __cpp_generic_lambdas=201707L
__cpp_guaranteed_copy_elision=201606L __cpp_hex_float=201603L __cpp_if_constexpr=201606L
__cpp_impl_coroutine=201902L __cpp_impl_destroying_delete=201806L
__cpp_impl_three_way_comparison=201907L __cpp_inheriting_constructors=201511L
__cpp_init_captures=201803L __cpp_initializer_lists=200806L __cpp_inline_variables=201606L
__cpp_lambdas=200907L __cpp_namespace_attributes=201411L
__cpp_nested_namespace_definitions=201411L __cpp_noexcept_function_type=201510L
__cpp_nontype_template_args=201411L __cpp_nontype_template_parameter_auto=201606L
__cpp_nsdmi=200809L __cpp_range_based_for=201603L __cpp_raw_strings=200710L
__cpp_ref_qualifiers=200710L __cpp_return_type_deduction=201304L __cpp_rvalue_references=200610L
__cpp_sized_deallocation_absent=1 __cpp_static_assert=201411L __cpp_structured_bindings=201606L
__cpp_template_auto=201606L __cpp_threadsafe_static_init=200806L
__cpp_unicode_characters=200704L __cpp_unicode_literals=200710L
__cpp_user_defined_literals=200809L __cpp_using_enum=201907L __cpp_variable_templates=201304L
__cpp_variadic_templates=200704L __cpp_variadic_using=201611L
__cpp_lib_string_view=201803L __cpp_lib_optional=201606L __cpp_lib_variant=201606L
__cpp_lib_any=201606L __cpp_lib_filesystem=201703L __cpp_lib_make_unique=201304L
__cpp_lib_byte=201603L __cpp_lib_void_t=201411L __cpp_lib_bool_constant=201505L
__cpp_lib_integer_sequence=201304L __cpp_lib_shared_mutex=201505L __cpp_lib_span=202002L
__cpp_lib_is_constant_evaluated=201811L __cpp_lib_bit_cast=201806L __cpp_lib_bitops=201907L
__cpp_lib_three_way_comparison=201907L __cpp_lib_exchange_function=201304L
__cpp_lib_uncaught_exceptions=201411L __cpp_lib_launder=201606L __cpp_lib_invoke=201411L
__cpp_lib_apply=201603L __cpp_lib_clamp=201603L __cpp_lib_to_chars=201611L
__cpp_lib_is_swappable=201603L __cpp_lib_is_final=201402L __cpp_lib_hypot=201603L
__cpp_lib_is_invocable=201703L __cpp_lib_result_of_sfinae=201210L
"""

PREDEFINED: Mapping[str, Macro] = {
    name: Macro(name, None, value)
    for name, value in (pair.split("=", 1) for pair in _PREDEFINED.split())
    if not name.endswith("_ABSENT") and not name.endswith("_absent")
}

_ATTRIBUTES = frozenset(
    "fallthrough nodiscard maybe_unused deprecated noreturn likely unlikely no_unique_address "
    "always_inline noinline unused used weak visibility format aligned packed hot cold const pure "
    "constructor destructor section malloc nonnull warn_unused_result artificial flatten "
    "returns_nonnull enable_if overloadable cleanup no_sanitize tls_model gnu_inline alias "
    "no_sanitize_address no_sanitize_memory no_sanitize_thread guarded_by diagnose_if noescape "
    "trivial_abi lifetimebound require_constant_initialization "
    "clang::fallthrough clang::reinitializes clang::lifetimebound gnu::always_inline".split()
)
_FEATURES = frozenset(
    "cxx_rvalue_references cxx_constexpr cxx_noexcept cxx_thread_local cxx_exceptions cxx_rtti "
    "cxx_variadic_templates cxx_static_assert cxx_auto_type cxx_nullptr cxx_lambdas "
    "cxx_explicit_conversions cxx_deleted_functions cxx_range_for cxx_strong_enums "
    "cxx_user_literals cxx_alias_templates cxx_generalized_initializers cxx_unrestricted_unions "
    "cxx_decltype cxx_defaulted_functions cxx_delegating_constructors cxx_override_control "
    "cxx_relaxed_constexpr cxx_return_type_deduction cxx_variable_templates cxx_init_captures "
    "cxx_generic_lambdas cxx_aggregate_nsdmi cxx_decltype_auto cxx_binary_literals "
    "is_trivially_copyable is_trivially_constructible is_trivially_assignable has_nothrow_assign "
    "has_trivial_destructor is_literal is_base_of is_class is_enum".split()
)
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


def from_build_system(name: str) -> Macro | None:
    """A macro that no file defines as a build on Linux would: its platform, headers it has."""
    if _PLATFORM.match(name):
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
    text = expand(text, lookup)
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
    if what in ("attribute", "cpp_attribute", "c_attribute"):
        if name not in _ATTRIBUTES:
            return " 0 "
        return " 201907 " if what == "cpp_attribute" else " 1 "
    if what == "builtin":
        return " 1 " if argument.startswith(("__builtin_", "__is_")) else " 0 "
    if what in ("feature", "extension"):
        return " 1 " if name in _FEATURES else " 0 "
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
