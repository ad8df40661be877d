#include "ckpt/convert/pickle.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <map>

#include "ckpt/convert/pickle_opcodes.h"
#include "ckpt/convert/pickle_view.h"
#include "ckpt/convert/pickle_writer.h"
#include "ckpt/convert/torch_file.h"
#include "runtime/base/status.h"
#include "tests/ckpt/test_state.h"
#include "tests/convert/torch_fixtures.h"

namespace perdure {
namespace {

using testing::HasSubstr;

std::string Pickle(std::string_view body, char protocol = 2) {
  return std::string("\x80") + protocol + std::string(body) + ".";
}

// What `body` leaves on the stack, described.
std::string Value(std::string_view body) {
  const auto tree = Unpickle(Pickle(body), "p");
  return tree.ok() ? DescribePickle(tree->root()) : Message(tree.status());
}

std::string Error(std::string bytes) {
  const auto tree = Unpickle(std::move(bytes), "p");
  if (tree.ok()) return "none";
  EXPECT_EQ(tree.status().code(), absl::StatusCode::kDataLoss);
  return Message(tree.status());
}

std::string Bytes(std::initializer_list<int> bytes) {
  std::string text;
  for (const int byte : bytes) text += static_cast<char>(byte);
  return text;
}

TEST(PickleTest, Constants) {
  EXPECT_EQ(Value("N"), "None");
  EXPECT_EQ(Value("\x88"), "True");
  EXPECT_EQ(Value("\x89"), "False");
  EXPECT_EQ(Value(")"), "a tuple of 0");
  EXPECT_EQ(Value("]"), "a list of 0");
  EXPECT_EQ(Value("}"), "a dict of 0");
}

TEST(PickleTest, Numbers) {
  EXPECT_EQ(Value("K\xff"), "the int 255");
  EXPECT_EQ(Value("M\xff\xff"), "the int 65535");
  EXPECT_EQ(Value("J\xff\xff\xff\xff"), "the int -1");
  EXPECT_EQ(Value(Bytes({'J', 0, 0, 0, 0x80})), "the int -2147483648");
  EXPECT_EQ(Value(Bytes({0x8a, 0})), "the int 0");
  EXPECT_EQ(Value(Bytes({0x8a, 1, 0x80})), "the int -128");
  EXPECT_EQ(Value(Bytes({0x8a, 2, 0xff, 0})), "the int 255");
  EXPECT_EQ(Value(Bytes({0x8a, 8, 0, 0, 0, 0, 0, 0, 0, 0x80})), "the int -9223372036854775808");
  EXPECT_EQ(Value(Bytes({'G', 0xc0, 4, 0, 0, 0, 0, 0, 0})), "the float -2.5");
  EXPECT_THAT(Error(Pickle(Bytes({0x8a, 9, 0, 0, 0, 0, 0, 0, 0, 0, 1}))),
              HasSubstr("byte 2, LONG1: an int of 9 bytes"));
}

TEST(PickleTest, Texts) {
  EXPECT_EQ(Value(Bytes({'X', 2, 0, 0, 0, 'h', 'i'})), "the str \"hi\"");
  EXPECT_EQ(Value(Bytes({0x8c, 2, 'h', 'i'})), "the str \"hi\"");
  EXPECT_EQ(Value(Bytes({'B', 2, 0, 0, 0, 0xff, 0})), "2 bytes");
  EXPECT_EQ(Value(Bytes({'C', 1, 0xff})), "1 bytes");
  EXPECT_EQ(Value(Bytes({0x8c, 2, 0xc3, 0xa9})), "the str \"??\"");
  for (const auto& text : {Bytes({0xff}), Bytes({0xc0, 0x80}), Bytes({0xe0, 0x80, 0x80}),
                           Bytes({0xf4, 0x90, 0x80, 0x80}), Bytes({0xc3}), Bytes({0xf8, 0x80})})
    EXPECT_THAT(Error(Pickle(Bytes({0x8c, static_cast<int>(text.size())}) + text)),
                HasSubstr("SHORT_BINUNICODE: a string that is not UTF-8"));
  EXPECT_EQ(Value(Bytes({0x8c, 3, 0xed, 0xa0, 0x80})), "the str \"???\"");  // A lone surrogate.
}

TEST(PickleTest, Containers) {
  EXPECT_EQ(Value("(NNNNt"), "a tuple of 4");
  EXPECT_EQ(Value("N\x85"), "a tuple of 1");
  EXPECT_EQ(Value("NN\x86"), "a tuple of 2");
  EXPECT_EQ(Value("NNN\x87"), "a tuple of 3");
  EXPECT_EQ(Value("]Na"), "a list of 1");
  EXPECT_EQ(Value("](NNe"), "a list of 2");
  EXPECT_EQ(Value("}K\1Ns"), "a dict of 1");
  EXPECT_EQ(Value("}(K\1NK\2Nu"), "a dict of 2");
  EXPECT_THAT(Error(Pickle("N\x86")), HasSubstr("byte 3, TUPLE2: takes 2 values, 1 stand"));
  EXPECT_THAT(Error(Pickle("N(\x85")), HasSubstr("takes 1 values, 0 stand above the mark"));
  EXPECT_THAT(Error(Pickle("t")), HasSubstr("byte 2, TUPLE: there is no mark"));
  EXPECT_THAT(Error(Pickle("NNa")), HasSubstr("APPEND: None has no append"));
  EXPECT_THAT(Error(Pickle("(Ne")), HasSubstr("APPENDS: takes 1 values"));
  EXPECT_THAT(Error(Pickle("]NNs")), HasSubstr("SETITEM: a list of 0 has no items to set"));
  EXPECT_THAT(Error(Pickle("}(NNNu")), HasSubstr("SETITEMS: 3 keys and values: one is missing"));
}

TEST(PickleTest, NamesAndCalls) {
  EXPECT_EQ(Value("cos\nsystem\n"), "os.system");
  EXPECT_EQ(Value(Bytes({0x8c, 2, 'o', 's', 0x8c, 1, 's', 0x93})), "os.s");
  const auto tree = Unpickle(Pickle("cos\nsystem\nN\x85R"), "p");
  ASSERT_TRUE(tree.ok()) << tree.status();
  EXPECT_EQ(DescribePickle(tree->root()), "a call of os.system");
  EXPECT_EQ(tree->root().args->items.size(), 1U);
  EXPECT_EQ(Value("cm\nC\n)\x81}b"), "an object of m.C");
  EXPECT_EQ(Value("NQ"), "a persistent id");
  EXPECT_THAT(Error(Pickle("c\nx\n")), HasSubstr("GLOBAL: a name that is none"));
  EXPECT_THAT(Error(Pickle("ca b\nx\n")), HasSubstr("GLOBAL: a name that is none"));
  EXPECT_THAT(Error(Pickle("cm\nx")), HasSubstr("a line without an end"));
  EXPECT_THAT(Error(Pickle("NN\x93")), HasSubstr("STACK_GLOBAL: None and None are to name"));
  EXPECT_THAT(Error(Pickle("N)R")), HasSubstr("REDUCE: None is to be called"));
  EXPECT_THAT(Error(Pickle("cm\nf\n)R)R")), HasSubstr("a call of m.f is to be called"));
  EXPECT_THAT(Error(Pickle("cm\nf\n]R")), HasSubstr("arguments are a list of 0, not a tuple"));
  EXPECT_THAT(Error(Pickle("N}b")), HasSubstr("BUILD: None has no state"));
  EXPECT_THAT(Error(Pickle("cm\nf\n)R}b}b")), HasSubstr("BUILD: a second state"));
}

TEST(PickleTest, WhatIsSetOrAppendedToACall) {
  EXPECT_EQ(Value("cm\nf\n)RNNs"), "a call of m.f");
  EXPECT_EQ(Value("cm\nf\n)RNa"), "a call of m.f");
  EXPECT_THAT(Error(Pickle("cm\nf\n)RNNsNa")), HasSubstr("APPEND: a call of m.f has no append"));
  EXPECT_THAT(Error(Pickle("cm\nf\n)RNaNNs")), HasSubstr("has no items to set"));
}

TEST(PickleTest, Memo) {
  EXPECT_EQ(Value(Bytes({'K', 7, 'q', 0, 'h', 0, 0x86})), "a tuple of 2");
  EXPECT_EQ(Value(Bytes({'K', 7, 'r', 0, 0, 0, 0, 'j', 0, 0, 0, 0, 0x86})), "a tuple of 2");
  EXPECT_EQ(Value(Bytes({'K', 7, 0x94, 'h', 0, 0x86})), "a tuple of 2");
  EXPECT_THAT(Error(Pickle(Bytes({'h', 0}))), HasSubstr("byte 2, BINGET: memo 0 was never put"));
  EXPECT_THAT(Error(Pickle(Bytes({'N', 'q', 5}))), HasSubstr("memo 5 where 0 is the next"));
  EXPECT_THAT(Error(Pickle(Bytes({'q', 0}))), HasSubstr("BINPUT: takes 1 values"));
}

TEST(PickleTest, FramesProtocolsAndEnds) {
  EXPECT_EQ(Error(Bytes({0x80, 4, 0x95, 2, 0, 0, 0, 0, 0, 0, 0, 'N', '.'})), "none");
  EXPECT_THAT(Error(Bytes({0x80, 4, 0x95, 3, 0, 0, 0, 0, 0, 0, 0, 'N', '.'})),
              HasSubstr("byte 2, FRAME: a frame of 3 bytes, 2 follow"));
  EXPECT_THAT(Error(Pickle("N", 1)), HasSubstr("PROTO: protocol 1"));
  EXPECT_THAT(Error(Pickle("N", 6)), HasSubstr("PROTO: protocol 6"));
  EXPECT_THAT(Error(Pickle(Bytes({0x80, 2, 'N'}))), HasSubstr("PROTO: a second one"));
  EXPECT_THAT(Error("N."), HasSubstr("byte 0: no pickle of protocol 2"));
  EXPECT_THAT(Error(""), HasSubstr("byte 0"));
  EXPECT_THAT(Error(Pickle("N") + "x"), HasSubstr("STOP: 1 bytes follow"));
  EXPECT_THAT(Error(Pickle("NN")), HasSubstr("STOP: 2 values remain"));
  EXPECT_THAT(Error(Pickle("")), HasSubstr("STOP: 0 values remain"));
  EXPECT_THAT(Error(Pickle("(N")), HasSubstr("STOP: 1 marks are open"));
  EXPECT_THAT(Error(Bytes({0x80, 2, 'N'})), HasSubstr("byte 3: the pickle ends without STOP"));
}

// What a pickle could do by these, no checkpoint needs.
TEST(PickleTest, OtherOpcodesAreRefusedByName) {
  const std::map<int, const char*> refused = {{'0', "POP"},          {'1', "POP_MARK"},
                                              {'2', "DUP"},          {'F', "FLOAT"},
                                              {'I', "INT"},          {'L', "LONG"},
                                              {'P', "PERSID"},       {'S', "STRING"},
                                              {'T', "BINSTRING"},    {'U', "SHORT_BINSTRING"},
                                              {'V', "UNICODE"},      {'d', "DICT"},
                                              {'g', "GET"},          {'i', "INST"},
                                              {'l', "LIST"},         {'o', "OBJ"},
                                              {'p', "PUT"},          {0x82, "EXT1"},
                                              {0x83, "EXT2"},        {0x84, "EXT4"},
                                              {0x8b, "LONG4"},       {0x8d, "BINUNICODE8"},
                                              {0x8e, "BINBYTES8"},   {0x8f, "EMPTY_SET"},
                                              {0x90, "ADDITEMS"},    {0x91, "FROZENSET"},
                                              {0x92, "NEWOBJ_EX"},   {0x96, "BYTEARRAY8"},
                                              {0x97, "NEXT_BUFFER"}, {0x98, "READONLY_BUFFER"},
                                              {0x00, "0x00"},        {0xff, "0xff"}};
  for (const auto& [opcode, name] : refused)
    EXPECT_THAT(Error(Pickle(Bytes({opcode}))),
                HasSubstr(std::string("byte 2, ") + name + ": this opcode is refused"));
}

TEST(PickleTest, CyclesAndBombsAreSharedNodes) {
  // A list that holds itself.
  const auto cycle = Unpickle(Pickle(Bytes({']', 'q', 0, 'h', 0, 'a'})), "p");
  ASSERT_TRUE(cycle.ok()) << cycle.status();
  EXPECT_EQ(cycle->root().items[0], &cycle->root());
  // Each tuple holds the one before twice: 2^200 leaves in 600 bytes.
  std::string bomb = "N";
  for (int i = 0; i < 200; ++i) bomb += Bytes({0x94, 'h', i, 0x86});
  const auto tree = Unpickle(Pickle(bomb, 4), "p");
  ASSERT_TRUE(tree.ok()) << tree.status();
  EXPECT_EQ(tree->nodes(), 201U);
}

TEST(PickleTest, DepthDoesNotRecurse) {
  const auto tree = Unpickle(Pickle(")" + std::string(2000000, '\x85')), "p");
  ASSERT_TRUE(tree.ok()) << tree.status();
  EXPECT_EQ(tree->nodes(), 2000001U);
}

std::string RealPickle(const std::string& fixture) {
  const auto file = TorchFile::Open(TorchFixture(fixture));
  EXPECT_TRUE(file.ok()) << file.status();
  const auto bytes = ReadZipRecord(file->file(), *file->zip().Find("data.pkl"), 1 << 20, fixture);
  EXPECT_TRUE(bytes.ok()) << bytes.status();
  return *bytes;
}

std::vector<std::string> RealPickles() {
  return {RealPickle("types.pt"),
          RealPickle("t1p1d3/global_step120/zero_pp_rank_2_mp_rank_00_optim_states.pt"),
          RealPickle("t1p1d3/global_step120/mp_rank_00_model_states.pt"),
          Slurp(TorchFixture("dcp/.metadata"))};
}

TEST(PickleTest, EveryTruncationIsAnError) {
  for (const std::string& pickle : RealPickles()) {
    ASSERT_TRUE(Unpickle(pickle, "p").ok());
    for (size_t length = 0; length < pickle.size(); ++length)
      ASSERT_THAT(Error(pickle.substr(0, length)), HasSubstr("byte ")) << length;
  }
}

// Ten thousand damaged pickles: an answer each time, in bounded time and memory.
TEST(PickleTest, MutationsEndInAnAnswer) {
  const std::vector<std::string> pickles = RealPickles();
  TestRandom random(7);
  const auto begin = std::chrono::steady_clock::now();
  int refused = 0;
  for (int i = 0; i < 10000; ++i) {
    std::string bytes = pickles[static_cast<size_t>(i) % pickles.size()];
    for (uint64_t flips = 1 + random.Below(4); flips > 0; --flips)
      bytes[random.Below(bytes.size())] = static_cast<char>(random.Next());
    const size_t length = bytes.size();
    const auto tree = Unpickle(std::move(bytes), "p");
    if (tree.ok()) EXPECT_LE(tree->nodes(), length);
    refused += tree.ok() ? 0 : 1;
  }
  EXPECT_GT(refused, 1000);
  EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(60));
}

TEST(PickleViewTest, SaysWhereAndWhat) {
  PickleWriter out(2);
  out.Op(kPickleEmptyDict);
  out.Op(kPickleMark);
  out.String("list");
  out.Op(kPickleEmptyList);
  out.String("x");
  out.Op(kPickleAppend);
  out.String("twice");
  out.None();
  out.String("twice");
  out.Int(-5000000000);
  out.Op(kPickleSetItems);
  const auto tree = Unpickle(std::move(out).Finish(), "p");
  ASSERT_TRUE(tree.ok()) << tree.status();
  const PickleView root(tree->root(), "f.pt");
  const auto list = root.Get("list");
  ASSERT_TRUE(list.ok()) << list.status();
  EXPECT_EQ(Message((*list->Items())[0].Int().status()),
            "f.pt.list[0] is the str \"x\": an int was expected");
  EXPECT_EQ(Message(list->Int().status()), "f.pt.list is a list of 1: an int was expected");
  EXPECT_EQ(Message(root.Get("none").status()), "f.pt has no key none");
  EXPECT_EQ(Message(root.Find("twice").status()), "f.pt has the key twice twice");
  EXPECT_FALSE(root.Find("none")->has_value());
  for (const auto& status :
       {list->Bool().status(), list->Number().status(), list->String().status(),
        list->Pairs().status(), list->CallArguments("m", "f", 0).status(),
        list->Fields("m", "C").status(), root.Items().status(), list->Ints().status(),
        root.Get(int64_t{3}).status()})
    EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss) << status;
}

}  // namespace
}  // namespace perdure
