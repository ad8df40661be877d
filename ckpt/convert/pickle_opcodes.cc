#include "ckpt/convert/pickle_opcodes.h"

#include <fmt/format.h>

namespace perdure {
namespace {

struct Opcode {
  uint8_t code;
  const char* name;
  PickleGroup group;
};

constexpr PickleGroup kNumber = PickleGroup::kNumber, kText = PickleGroup::kText,
                      kTuple = PickleGroup::kTuple, kAppend = PickleGroup::kAppend,
                      kSet = PickleGroup::kSet, kMemo = PickleGroup::kMemo,
                      kName = PickleGroup::kName, kObject = PickleGroup::kObject,
                      kRefused = PickleGroup::kRefused;

constexpr Opcode kOpcodes[] = {
    {kPickleProto, "PROTO", kRefused},
    {kPickleFrame, "FRAME", kRefused},
    {kPickleStop, "STOP", kRefused},
    {kPickleMark, "MARK", kRefused},
    {kPickleNone, "NONE", kRefused},
    {kPickleNewTrue, "NEWTRUE", kRefused},
    {kPickleNewFalse, "NEWFALSE", kRefused},
    {kPickleEmptyTuple, "EMPTY_TUPLE", kRefused},
    {kPickleEmptyDict, "EMPTY_DICT", kRefused},
    {kPickleEmptyList, "EMPTY_LIST", kRefused},
    {kPickleBinInt, "BININT", kNumber},
    {kPickleBinInt1, "BININT1", kNumber},
    {kPickleBinInt2, "BININT2", kNumber},
    {kPickleLong1, "LONG1", kNumber},
    {kPickleBinFloat, "BINFLOAT", kNumber},
    {kPickleBinUnicode, "BINUNICODE", kText},
    {kPickleShortBinUnicode, "SHORT_BINUNICODE", kText},
    {kPickleBinBytes, "BINBYTES", kText},
    {kPickleShortBinBytes, "SHORT_BINBYTES", kText},
    {kPickleTuple, "TUPLE", kTuple},
    {kPickleTuple1, "TUPLE1", kTuple},
    {kPickleTuple2, "TUPLE2", kTuple},
    {kPickleTuple3, "TUPLE3", kTuple},
    {kPickleAppend, "APPEND", kAppend},
    {kPickleAppends, "APPENDS", kAppend},
    {kPickleSetItem, "SETITEM", kSet},
    {kPickleSetItems, "SETITEMS", kSet},
    {kPickleBinPut, "BINPUT", kMemo},
    {kPickleLongBinPut, "LONG_BINPUT", kMemo},
    {kPickleBinGet, "BINGET", kMemo},
    {kPickleLongBinGet, "LONG_BINGET", kMemo},
    {kPickleMemoize, "MEMOIZE", kMemo},
    {kPickleGlobal, "GLOBAL", kName},
    {kPickleStackGlobal, "STACK_GLOBAL", kName},
    {kPickleReduce, "REDUCE", kObject},
    {kPickleNewObj, "NEWOBJ", kObject},
    {kPickleBuild, "BUILD", kObject},
    {kPickleBinPersId, "BINPERSID", kObject},
    // Those below have a name only, so that a message can say it.
    {'0', "POP", kRefused},
    {'1', "POP_MARK", kRefused},
    {'2', "DUP", kRefused},
    {'F', "FLOAT", kRefused},
    {'I', "INT", kRefused},
    {'L', "LONG", kRefused},
    {'P', "PERSID", kRefused},
    {'S', "STRING", kRefused},
    {'T', "BINSTRING", kRefused},
    {'U', "SHORT_BINSTRING", kRefused},
    {'V', "UNICODE", kRefused},
    {'d', "DICT", kRefused},
    {'g', "GET", kRefused},
    {'i', "INST", kRefused},
    {'l', "LIST", kRefused},
    {'o', "OBJ", kRefused},
    {'p', "PUT", kRefused},
    {0x82, "EXT1", kRefused},
    {0x83, "EXT2", kRefused},
    {0x84, "EXT4", kRefused},
    {0x8b, "LONG4", kRefused},
    {0x8d, "BINUNICODE8", kRefused},
    {0x8e, "BINBYTES8", kRefused},
    {0x8f, "EMPTY_SET", kRefused},
    {0x90, "ADDITEMS", kRefused},
    {0x91, "FROZENSET", kRefused},
    {0x92, "NEWOBJ_EX", kRefused},
    {0x96, "BYTEARRAY8", kRefused},
    {0x97, "NEXT_BUFFER", kRefused},
    {0x98, "READONLY_BUFFER", kRefused},
};

}  // namespace

PickleGroup PickleOpcodeGroup(uint8_t opcode) {
  for (const Opcode& known : kOpcodes)
    if (known.code == opcode) return known.group;
  return PickleGroup::kRefused;
}

std::string PickleOpcodeName(uint8_t opcode) {
  for (const Opcode& known : kOpcodes)
    if (known.code == opcode) return known.name;
  return fmt::format("{:#04x}", opcode);
}

}  // namespace perdure
