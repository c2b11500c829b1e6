"""Which words speak for which header of the standard library."""

from collections.abc import Iterable, Iterator, Mapping

# A header that is not here is kept wherever a file of the document includes it.
_WORDS: Mapping[str, frozenset[str]] = {
    header: frozenset(words.split())
    for header, words in {
        "algorithm": "sort stable_sort partial_sort nth_element min max minmax min_element "
        "max_element minmax_element clamp find find_if find_if_not find_first_of search count "
        "count_if copy copy_n copy_if copy_backward move_backward fill fill_n generate transform "
        "for_each reverse rotate unique remove remove_if replace replace_if equal mismatch "
        "lexicographical_compare lower_bound upper_bound equal_range binary_search all_of any_of "
        "none_of is_sorted partition stable_partition push_heap pop_heap make_heap sort_heap swap "
        "swap_ranges iter_swap shuffle random_shuffle merge inplace_merge includes set_union "
        "set_intersection set_difference next_permutation adjacent_find is_permutation sample",
        "any": "any any_cast",
        "array": "array",
        "atomic": "atomic atomic_bool atomic_int atomic_flag memory_order memory_order_relaxed "
        "memory_order_acquire memory_order_release memory_order_seq_cst memory_order_acq_rel "
        "atomic_thread_fence atomic_uint64_t atomic_load atomic_store atomic_signal_fence "
        "ATOMIC_FLAG_INIT ATOMIC_VAR_INIT atomic_size_t atomic_int64_t",
        "bitset": "bitset",
        "charconv": "from_chars to_chars chars_format",
        "chrono": "chrono system_clock steady_clock milliseconds seconds",
        "codecvt": "codecvt codecvt_utf8 wstring_convert codecvt_utf8_utf16",
        "complex": "complex real imag conj polar",
        "condition_variable": "condition_variable condition_variable_any cv_status",
        "deque": "deque",
        "filesystem": "filesystem",
        "forward_list": "forward_list",
        "fstream": "ifstream ofstream fstream filebuf basic_ofstream basic_ifstream basic_filebuf",
        "functional": "function bind hash less greater equal_to not_equal_to plus minus multiplies "
        "mem_fn ref cref reference_wrapper placeholders binary_function unary_function logical_not "
        "less_equal greater_equal bit_and bit_or bit_xor divides modulus negate invoke not_fn "
        "bad_function_call logical_and logical_or ptr_fun mem_fun bind1st bind2nd",
        "future": "future promise async packaged_task shared_future future_status launch",
        "iomanip": "setw setfill setprecision put_time get_time setbase quoted setiosflags",
        "iostream": "cout cerr cin clog wcout endl ostream istream iostream ios ios_base",
        "list": "list",
        "map": "map multimap",
        "mutex": "mutex recursive_mutex timed_mutex lock_guard unique_lock scoped_lock once_flag "
        "call_once adopt_lock defer_lock try_to_lock recursive_timed_mutex lock",
        "numeric": "accumulate iota inner_product partial_sum gcd lcm adjacent_difference reduce "
        "midpoint",
        "optional": "optional nullopt nullopt_t make_optional in_place",
        "queue": "queue priority_queue",
        "random": "mt19937 mt19937_64 random_device uniform_int_distribution default_random_engine "
        "uniform_real_distribution normal_distribution bernoulli_distribution minstd_rand "
        "seed_seq discrete_distribution linear_congruential_engine exponential_distribution "
        "geometric_distribution poisson_distribution minstd_rand0 generate_canonical",
        "ranges": "ranges views",
        "ratio": "ratio milli micro nano",
        "regex": "regex smatch cmatch regex_match regex_search regex_replace sregex_iterator "
        "regex_error regex_constants",
        "set": "set multiset",
        "shared_mutex": "shared_mutex shared_lock shared_timed_mutex",
        "span": "span dynamic_extent",
        "sstream": "stringstream ostringstream istringstream stringbuf wstringstream "
        "basic_stringbuf basic_ostringstream basic_stringstream wostringstream "
        "basic_istringstream",
        "stack": "stack",
        "thread": "thread this_thread jthread",
        "typeindex": "type_index",
        "typeinfo": "typeid type_info bad_cast",
        "unordered_map": "unordered_map unordered_multimap",
        "unordered_set": "unordered_set unordered_multiset",
        "valarray": "valarray",
        "variant": "variant visit monostate holds_alternative get_if bad_variant_access",
        "vector": "vector",
    }.items()
}


# Of these not all words are known: enough to add them, too few to leave them out.
_SOME_WORDS: Mapping[str, frozenset[str]] = {
    header: frozenset(words.split())
    for header, words in {
        "cassert": "assert",
        "cerrno": "errno EINTR ERANGE EINVAL ENOENT EAGAIN",
        "cfloat": "DBL_MAX FLT_MAX DBL_EPSILON DBL_MIN",
        "climits": "INT_MAX INT_MIN UINT_MAX LONG_MAX CHAR_BIT LLONG_MAX ULLONG_MAX",
        "cmath": "sqrt pow floor ceil fabs log exp sin cos tan atan2 isnan isinf abs round",
        "cstddef": "size_t ptrdiff_t nullptr_t max_align_t offsetof",
        "cstdint": "int8_t int16_t int32_t int64_t uint8_t uint16_t uint32_t uint64_t uintptr_t "
        "intptr_t INT64_MAX UINT64_MAX INT32_MAX UINT64_C INT64_C",
        "cstdio": "printf fprintf snprintf FILE stderr stdout fopen fclose vsnprintf sprintf",
        "cstdlib": "malloc free abort exit getenv realloc calloc atoi strtol strtod abs rand "
        "EXIT_SUCCESS EXIT_FAILURE strtoul strtoull strtoll qsort system",
        "cstring": "memcpy memset memcmp strlen strcmp strncmp memmove strchr strstr strerror "
        "strcpy strncpy strrchr",
        "ctime": "time_t tm time localtime gmtime strftime clock",
        "immintrin.h": "__m128 __m128d __m128i __m256 __m256d __m256i _mm_setzero_ps",
        "emmintrin.h": "__m128 __m128d __m128i _mm_setzero_si128",
        "xmmintrin.h": "__m128 _mm_prefetch _mm_setzero_ps",
        "initializer_list": "initializer_list",
        "iterator": "iterator_traits back_inserter reverse_iterator begin end next "
        "forward_iterator_tag random_access_iterator_tag input_iterator_tag distance advance",
        "limits": "numeric_limits",
        "memory": "unique_ptr shared_ptr weak_ptr make_unique make_shared allocator "
        "allocator_traits enable_shared_from_this addressof static_pointer_cast",
        "new": "nothrow bad_alloc launder",
        "ostream": "ostream endl",
        "stdexcept": "runtime_error logic_error invalid_argument out_of_range",
        "string": "string to_string wstring basic_string char_traits getline stoi",
        "string_view": "string_view basic_string_view",
        "system_error": "error_code system_error error_category",
        "tuple": "tuple tie make_tuple tuple_size tuple_element forward_as_tuple",
        "type_traits": "enable_if is_same is_integral decay conditional true_type "
        "false_type remove_reference is_base_of is_convertible enable_if_t decay_t is_void "
        "aligned_storage underlying_type is_enum is_pod is_trivial is_arithmetic",
        "utility": "move forward pair make_pair swap declval index_sequence exchange",
    }.items()
}


# What most headers bring along, and code uses without including it: words that mean nothing else.
_OF_WORDS: Mapping[str, frozenset[str]] = {
    header: frozenset(words.split())
    for header, words in {
        "cmath": "fabs isnan isinf sqrt floor ceil",
        "cstddef": "size_t ptrdiff_t",
        "cstdint": "int8_t int16_t int32_t int64_t uint8_t uint16_t uint32_t uint64_t intptr_t "
        "uintptr_t",
        "cstring": "memcpy memset memcmp strlen strcmp memmove",
        "string": "string",
    }.items()
}


_KNOWN = frozenset().union(
    *(words for table in (_WORDS, _SOME_WORDS, _OF_WORDS) for words in table.values())
)
_BIT = {word.encode(): 1 << place for place, word in enumerate(sorted(_KNOWN))}
_BLANKED = bytes(  # what may stand between words of UTF-8
    code if code >= 128 or chr(code).isalnum() or chr(code) == "_" else ord(" ")
    for code in range(256)
)


def headers_of(word: str) -> list[str]:
    """The headers of the standard library that a word speaks for, the likeliest first."""
    if word not in _KNOWN:
        return []
    return [
        header
        for words in (_WORDS, _SOME_WORDS)
        for header, known in words.items()
        if word in known
    ][:2]


def headers_of_cpp() -> list[str]:
    """The headers of the standard library that are known here, those of C aside."""
    return sorted(name for name in (*_WORDS, *_SOME_WORDS) if not name.endswith(".h"))


def words_of(text: str) -> int:
    """The words of a text that speak for a header of the standard library, as a set of bits."""
    # Far faster than a regular expression for words: most of what a document is, is asked.
    return _bits(_BIT.keys() & text.encode(errors="replace").translate(_BLANKED).split())


def may_need(words: int, header: str) -> bool:
    """Whether a document with these words may need a system header that its files include."""
    known = _ALL.get(header)
    return known is None or bool(words & known)


def needs(words: int, header: str) -> bool:
    """Whether it surely speaks of a header, which its files then need not include themselves."""
    return bool(words & _SURE.get(header, 0))


def needs_unasked(words: int) -> Iterator[str]:
    """The headers that it needs even where none of its files, or what they see, includes them."""
    return (header for header, known in _UNASKED.items() if words & known)


def _bits(words: Iterable[bytes]) -> int:
    found = 0
    for word in words:
        found |= _BIT[word]
    return found


def _as_bits(table: Mapping[str, frozenset[str]]) -> dict[str, int]:
    return {header: _bits(map(str.encode, words)) for header, words in table.items()}


_ALL = _as_bits(_WORDS)
_SURE = _as_bits(_SOME_WORDS) | _ALL
_UNASKED = _as_bits(_OF_WORDS)
