# SPDX-License-Identifier: Apache-2.0
"""Native functions written in Python: loops, addresses and vectors, compiled by LLVM.

llvmlite appends LLVM's instructions to a function one by one. Here integers and vectors
are objects with operators, so that the function reads as what it computes. Importing
this module needs llvmlite, an optional package, and x86-64.
"""

import ctypes
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from itertools import count
from types import SimpleNamespace
from typing import Optional, Union

from llvmlite import binding, ir

from gluon_resnet.inference.onednn import DType

_WORD, _FLOAT = ir.IntType(64), ir.FloatType()
_SINGLE, _HALF = ir.IntType(32), ir.IntType(16)
_BF16_BITS, _BF16_NAN = 16, 0x7FC0

binding.initialize()
binding.initialize_native_target()
binding.initialize_native_asmprinter()


@dataclass(frozen=True)
class Instructions:
    """What the code may use of a processor."""

    name: str
    lanes: int
    """float32 values in a register."""
    registers: int
    has_bf16: bool
    """Whether there are products of bfloat16 with sums in float32."""
    features: str
    """As LLVM names them."""


_AVX512_FEATURES = "+fma,+avx512f,+avx512bw,+avx512dq,+avx512vl"
AVX2 = Instructions("avx2", 8, 16, False, "+fma,+avx2")
AVX512 = Instructions("avx512", 16, 32, False, _AVX512_FEATURES)
AVX512_BF16 = Instructions("avx512", 16, 32, True, f"{_AVX512_FEATURES},+avx512bf16")


class Integer:
    """64 bits of a function: a length, an index, or an address in bytes."""

    def __init__(self, function: "Function", value: ir.Value):
        self._function = function
        self.value = value

    def _with(self, instruction: str, other: "Int") -> "Integer":
        build = getattr(self._function.builder, instruction)
        return Integer(self._function, build(self.value, _word(other)))

    def __add__(self, other: "Int") -> "Integer":
        return self._with("add", other)

    def __sub__(self, other: "Int") -> "Integer":
        return self._with("sub", other)

    def __mul__(self, other: "Int") -> "Integer":
        return self._with("mul", other)

    def __floordiv__(self, other: "Int") -> "Integer":
        """Of numbers that are not negative."""
        return self._with("udiv", other)

    def __mod__(self, other: "Int") -> "Integer":
        """Of numbers that are not negative."""
        return self._with("urem", other)

    def is_within(self, length: "Int") -> ir.Value:
        """Whether 0 <= self < length."""
        return self._function.builder.icmp_unsigned("<", self.value, _word(length))


Int = Union[Integer, int]


class Words:
    """64-bit integers in memory."""

    def __init__(self, function: "Function", address: Integer):
        self._function = function
        self._address = address

    def _pointer(self, index: Int) -> ir.Value:
        offset = Integer(self._function, _word(index)) * 8
        return self._function.pointer(self._address + offset, _WORD)

    def __getitem__(self, index: Int) -> Integer:
        value = self._function.builder.load(self._pointer(index))
        return Integer(self._function, value)

    def __setitem__(self, index: Int, word: Integer) -> None:
        self._function.builder.store(word.value, self._pointer(index))


class Vector:
    """As many float32 values as a register has lanes."""

    def __init__(self, function: "Function", value: ir.Value):
        self._function = function
        self.value = value

    def _with(self, instruction: str, other: "Vector") -> "Vector":
        build = getattr(self._function.builder, instruction)
        return Vector(self._function, build(self.value, other.value))

    def __add__(self, other: "Vector") -> "Vector":
        return self._with("fadd", other)

    def __sub__(self, other: "Vector") -> "Vector":
        return self._with("fsub", other)

    def __mul__(self, other: "Vector") -> "Vector":
        return self._with("fmul", other)


class Variable:
    """A vector that may change, as in a loop."""

    def __init__(self, function: "Function", value: Vector):
        self._function = function
        with function.builder.goto_entry_block():
            self._place = function.builder.alloca(value.value.type)
        self.value = value

    @property
    def value(self) -> Vector:
        """What it is now."""
        return Vector(self._function, self._function.builder.load(self._place))

    @value.setter
    def value(self, value: Vector) -> None:
        self._function.builder.store(value.value, self._place)


class Code:
    """Functions that are compiled together."""

    def __init__(self, instructions: Instructions):
        self.instructions = instructions
        self.module = ir.Module()
        self.module.triple = binding.get_process_triple()

    def function(
        self, name: str, parameters: Sequence[str], *, exported: bool = False
    ) -> "Function":
        """Return a function to be written: it takes integers and returns nothing.

        exported: whether it is called from outside, see `compiled`.
        """
        return Function(self, name, parameters, exported)

    def compiled(self) -> dict[str, int]:
        """Return the addresses of the exported functions, which stay for good.

        Raises RuntimeError where the system allows no new executable memory.
        """
        module = binding.parse_assembly(str(self.module))
        module.verify()
        passes = binding.create_module_pass_manager()
        # Variables into registers, and loads into the instructions that use the value.
        # The rest of what compilers do takes twice the time and makes nothing faster.
        passes.add_sroa_pass()
        passes.add_instruction_combining_pass()
        passes.run(module)
        binary = _machine(self.instructions.features).emit_object(module)
        return _loaded(
            binary,
            [
                function.name
                for function in module.functions
                if function.linkage.name == "external" and not function.is_declaration
            ],
        )


class Function:
    """A function that is being written: each method appends instructions."""

    def __init__(
        self, code: Code, name: str, parameters: Sequence[str], exported: bool
    ):
        """See `Code.function`."""
        self.instructions = code.instructions
        self._module = code.module
        signature = ir.FunctionType(ir.VoidType(), [_WORD] * len(parameters))
        self.function = ir.Function(code.module, signature, name)
        self.function.linkage = "external" if exported else "internal"
        self.function.attributes.add("nounwind")
        for argument, parameter in zip(self.function.args, parameters):
            argument.name = parameter
        self.builder = ir.IRBuilder(self.function.append_basic_block())
        self.parameters = [Integer(self, value) for value in self.function.args]
        self._floats, self._singles, self._halves = (
            ir.VectorType(element, code.instructions.lanes)
            for element in (_FLOAT, _SINGLE, _HALF)
        )

    def end(self) -> "Function":
        """Return from the function, which is written by now."""
        self.builder.ret_void()
        return self

    # Control

    @contextmanager
    def loop(self, start: Int, stop: Int, step: Int = 1) -> Iterator[Integer]:
        """Repeat what is written within for start, start + step, ... below stop."""
        b = self.builder
        before = b.block
        head, body, after = (b.append_basic_block() for _ in range(3))
        b.branch(head)
        b.position_at_end(head)
        index = b.phi(_WORD)
        index.add_incoming(_word(start), before)
        b.cbranch(b.icmp_signed("<", index, _word(stop)), body, after)
        b.position_at_end(body)
        yield Integer(self, index)
        index.add_incoming(b.add(index, _word(step)), b.block)
        b.branch(head)
        b.position_at_end(after)

    @contextmanager
    def unless_zero(self, value: Integer) -> Iterator[None]:
        """Do what is written within only where `value` is not 0."""
        b = self.builder
        with b.if_then(b.icmp_unsigned("!=", value.value, _word(0))):
            yield

    def call(self, function: Union["Function", Int], *arguments: Int) -> None:
        """Call a function of this code, or one at an address."""
        words = [_word(argument) for argument in arguments]
        if isinstance(function, Function):
            self.builder.call(function.function, words)
        else:
            self._call_address(function, ir.VoidType(), words)

    def call_for_int(self, address: int) -> Integer:
        """Call a C function without parameters that returns an int of 0 or more."""
        result = self._call_address(address, _SINGLE, [])
        return Integer(self, self.builder.zext(result, _WORD))

    def _call_address(
        self, address: Int, result: ir.Type, words: Sequence[ir.Value]
    ) -> ir.Value:
        signature = ir.FunctionType(result, [_WORD] * len(words))
        pointer = self.builder.inttoptr(_word(address), signature.as_pointer())
        return self.builder.call(pointer, words)

    # Integers

    def address_of(self, function: "Function") -> Integer:
        """Return where another function of this code is."""
        return Integer(self, self.builder.ptrtoint(function.function, _WORD))

    def fields(
        self, address: Integer, structure: type[ctypes.Structure]
    ) -> SimpleNamespace:
        """Return the fields, by name, of a structure of 64-bit integers."""
        words = Words(self, address)
        names = (name for name, *_ in structure._fields_)
        return SimpleNamespace(
            **{name: words[number] for number, name in enumerate(names)}
        )

    def words(self, length: int) -> Words:
        """Return memory of the function's own, for as long as it runs."""
        with self.builder.goto_entry_block():
            place = self.builder.alloca(_WORD, length)
            return Words(self, Integer(self, self.builder.ptrtoint(place, _WORD)))

    def select(self, conditions: Sequence[ir.Value], value: Int, other: Int) -> Integer:
        """Return `value` where all conditions hold, else `other`."""
        b = self.builder
        holds, *more = conditions
        for condition in more:
            holds = b.and_(holds, condition)
        return Integer(self, b.select(holds, _word(value), _word(other)))

    def minimum(self, value: Integer, other: Int) -> Integer:
        """Return the smaller one."""
        is_less = self.builder.icmp_signed("<", value.value, _word(other))
        return self.select([is_less], value, other)

    def pointer(self, address: Integer, type_: ir.Type) -> ir.Value:
        """Return an address as LLVM has it."""
        return self.builder.inttoptr(address.value, type_.as_pointer())

    # Vectors

    def splat(self, value: float) -> Vector:
        """Return a constant in all lanes."""
        return Vector(self, ir.Constant(self._floats, [value] * self._floats.count))

    def broadcast(self, address: Integer) -> Vector:
        """Return the 32 bits at an address in all lanes."""
        value = self.builder.load(self.pointer(address, _FLOAT))
        return Vector(self, self._spread(value))

    def variable(self, value: Vector) -> Variable:
        """Return a variable that is `value` at first."""
        return Variable(self, value)

    def first_lanes(self, length: Integer) -> ir.Value:
        """Return the mask of the first `length` lanes, which may be none or all."""
        lanes = self._singles.count
        length = self.minimum(length, lanes)
        limit = self._spread(self.builder.trunc(length.value, _SINGLE))
        numbers = ir.Constant(self._singles, list(range(lanes)))
        return self.builder.icmp_signed("<", numbers, limit)

    def load(
        self,
        address: Integer,
        dtype: DType = DType.F32,
        mask: Optional[ir.Value] = None,
    ) -> Vector:
        """Return elements of memory; 0 instead of those that a mask leaves out."""
        if dtype == DType.F32:
            return Vector(self, self._load(address, self._floats, dtype, mask))
        b = self.builder
        halves = self._load(address, self._halves, dtype, mask)
        bits = b.shl(b.zext(halves, self._singles), self._constant(_BF16_BITS))
        return Vector(self, b.bitcast(bits, self._floats))

    def _load(
        self,
        address: Integer,
        type_: ir.VectorType,
        dtype: DType,
        mask: Optional[ir.Value],
    ) -> ir.Value:
        pointer = self.pointer(address, type_)
        if mask is None:
            return self.builder.load(pointer, align=dtype.nbytes)
        alignment = ir.Constant(_SINGLE, dtype.nbytes)
        zeros = ir.Constant(type_, None)
        name = f"llvm.masked.load.{_suffix(type_)}.p0{_suffix(type_)}"
        return self._intrinsic(name, type_, pointer, alignment, mask, zeros)

    def store(
        self,
        vector: Vector,
        address: Integer,
        dtype: DType = DType.F32,
        mask: Optional[ir.Value] = None,
    ) -> None:
        """Write elements into memory, but for those that a mask leaves out."""
        value = vector.value
        if dtype == DType.BF16:
            value = self._rounded_to_bf16(value)
        pointer = self.pointer(address, value.type)
        if mask is None:
            self.builder.store(value, pointer, align=dtype.nbytes)
            return
        alignment = ir.Constant(_SINGLE, dtype.nbytes)
        name = f"llvm.masked.store.{_suffix(value.type)}.p0{_suffix(value.type)}"
        self._intrinsic(name, ir.VoidType(), value, pointer, alignment, mask)

    def _rounded_to_bf16(self, value: ir.Value) -> ir.Value:
        """The nearest bfloat16; of two equally near the one whose last bit is 0."""
        if self.instructions.has_bf16:
            name = "llvm.x86.avx512bf16.cvtneps2bf16.512"
            return self._intrinsic(name, self._halves, value)
        b, constant = self.builder, self._constant
        bits = b.bitcast(value, self._singles)
        last_bit = b.and_(b.lshr(bits, constant(_BF16_BITS)), constant(1))
        rounded = b.add(bits, b.add(last_bit, constant(0x7FFF)))
        rounded = b.lshr(rounded, constant(_BF16_BITS))
        is_nan = b.fcmp_unordered("uno", value, value)
        return b.trunc(b.select(is_nan, constant(_BF16_NAN), rounded), self._halves)

    def multiply_add(self, x: Vector, y: Vector, z: Vector) -> Vector:
        """Return x * y + z, rounded once."""
        name = f"llvm.fma.{_suffix(self._floats)}"
        operands = (x.value, y.value, z.value)
        return Vector(self, self._intrinsic(name, self._floats, *operands))

    def multiply_add_pairs(self, x: Vector, y: Vector, z: Vector) -> Vector:
        """Return z and, of lanes that are pairs of bfloat16, both products, summed."""
        name = "llvm.x86.avx512bf16.dpbf16ps.512"
        pairs = (self.builder.bitcast(v.value, self._singles) for v in (y, x))
        return Vector(self, self._intrinsic(name, self._floats, z.value, *pairs))

    def maximum(self, lowest: Vector, vector: Vector) -> Vector:
        """Return the larger value of each lane, NaN where `vector` is NaN."""
        is_low = self.builder.fcmp_ordered(">", lowest.value, vector.value)
        return Vector(self, self.builder.select(is_low, lowest.value, vector.value))

    def select_vector(self, flag: Integer, vector: Vector, other: Vector) -> Vector:
        """Return `vector` where `flag` is not 0, else `other`."""
        is_set = self.builder.icmp_unsigned("!=", flag.value, _word(0))
        return Vector(self, self.builder.select(is_set, vector.value, other.value))

    def _spread(self, value: ir.Value) -> ir.Value:
        """A value in all lanes."""
        type_ = ir.VectorType(value.type, self._singles.count)
        nothing = ir.Constant(type_, ir.Undefined)
        first = self.builder.insert_element(nothing, value, ir.Constant(_SINGLE, 0))
        all_first = ir.Constant(self._singles, None)
        return self.builder.shuffle_vector(first, nothing, all_first)

    def _constant(self, value: int) -> ir.Constant:
        return ir.Constant(self._singles, [value] * self._singles.count)

    def _intrinsic(self, name: str, result: ir.Type, *operands: ir.Value) -> ir.Value:
        """Call one of LLVM's own functions, which become single instructions."""
        function = self._module.globals.get(name)
        if function is None:
            signature = ir.FunctionType(result, [operand.type for operand in operands])
            function = ir.Function(self._module, signature, name)
        return self.builder.call(function, operands)


def check_memory(instructions: Instructions) -> None:
    """Raise RuntimeError where the system allows no new executable memory."""
    code = Code(instructions)
    code.function("nothing", [], exported=True).end()
    code.compiled()


def _word(value: Int) -> ir.Value:
    return value.value if isinstance(value, Integer) else ir.Constant(_WORD, value)


def _suffix(type_: ir.VectorType) -> str:
    """What LLVM's own functions have in their names for a type, such as v16f32."""
    element = "f32" if type_.element == _FLOAT else f"i{type_.element.width}"
    return f"v{type_.count}{element}"


@cache
def _machine(features: str) -> binding.TargetMachine:
    target = binding.Target.from_triple(binding.get_process_triple())
    return target.create_target_machine(features=features, reloc="pic")


@cache
def _loader() -> binding.orcjit.LLJIT:
    # Errors come as exceptions; LLVM need not print them as well.
    return binding.create_lljit_compiler(_machine(""), suppress_errors=True)


_numbers = count()
_loaded_codes: list[binding.orcjit.ResourceTracker] = []
"""Each keeps its functions in memory."""


def _loaded(binary: bytes, names: Sequence[str]) -> dict[str, int]:
    """Load machine code and return where its functions are."""
    library = binding.JITLibraryBuilder().add_object_img(binary)
    for name in names:
        library.export_symbol(name)
    tracker = library.link(_loader(), f"code {next(_numbers)}")
    _loaded_codes.append(tracker)
    return {name: tracker[name] for name in names}
