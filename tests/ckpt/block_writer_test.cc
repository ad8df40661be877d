#include "ckpt/block_writer.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <atomic>
#include <cstring>
#include <filesystem>
#include <set>
#include <thread>

#include "runtime/base/status.h"
#include "tests/ckpt/test_state.h"

namespace perdure {
namespace {

using std::chrono::steady_clock;

class BlockWriterTest : public testing::Test {
 protected:
  File Create(uint64_t bytes) {
    auto file = CreateNewFile(path());
    EXPECT_OK(file.status());
    EXPECT_OK(file->Truncate(bytes));
    return *std::move(file);
  }
  std::string path() const { return directory_.path() + "/file"; }

  TestDirectory directory_;
};

TEST_F(BlockWriterTest, BlocksInAnyOrderComeOutWhereTheyBelong) {
  constexpr uint64_t kBytes = 20 * kBlockBytes + 777;
  for (const int threads : {1, 4}) {
    std::filesystem::remove(path());
    File file = Create(kBytes);
    BlockWriter writer(file, kBytes, {.threads = threads, .buffers = 8});
    std::string expected(kBytes, '\0');
    TestRandom random(static_cast<uint64_t>(threads));
    std::vector<uint64_t> order;
    for (uint64_t block = 0; block <= 20; ++block) order.push_back(block);
    for (size_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[random.Below(i)]);
    for (const uint64_t block : order) {
      if (block % 5 == 3) {
        writer.PutHole(block);
        continue;
      }
      char* buffer = writer.Take();
      ASSERT_NE(buffer, nullptr);
      const uint64_t bytes = std::min(kBlockBytes, kBytes - block * kBlockBytes);
      std::memset(buffer, static_cast<int>('a' + block), bytes);
      std::memcpy(expected.data() + block * kBlockBytes, buffer, bytes);
      writer.Put(block, buffer);
    }
    const auto digests = writer.Finish();
    ASSERT_OK(digests.status());
    ASSERT_OK(file.Close());
    EXPECT_TRUE(Slurp(path()) == expected);
    ASSERT_EQ(digests->size(), 21u);
    for (const auto& [block, digest] : *digests) {
      const auto bytes = expected.substr(block * kBlockBytes, kBlockBytes);
      EXPECT_EQ(digest, DigestOf(bytes)) << block;
    }
  }
}

TEST_F(BlockWriterTest, KeepsRoughlyToItsBudget) {
  constexpr uint64_t kBlocks = 12;
  for (const int threads : {1, 3}) {
    std::filesystem::remove(path());
    File file = Create(kBlocks * kBlockBytes);
    const auto began = steady_clock::now();
    BlockWriter writer(file, kBlocks * kBlockBytes,
                       {.threads = threads, .buffers = 8, .bytes_per_second = 32 * kBlockBytes});
    for (uint64_t block = 0; block < kBlocks; ++block) {
      char* buffer = writer.Take();
      ASSERT_NE(buffer, nullptr);
      std::memset(buffer, 1, kBlockBytes);
      writer.Put(block, buffer);
    }
    ASSERT_OK(writer.Finish().status());
    const std::chrono::duration<double> took = steady_clock::now() - began;
    // A transfer of up to 8 blocks is paid for by the one behind it.
    EXPECT_GE(took.count(), (kBlocks - 8) / 32.0) << threads;
  }
}

TEST_F(BlockWriterTest, AnErrorOfAnyThreadSurfaces) {
  for (const int threads : {1, 4}) {
    File file(::open("/dev/full", O_RDWR | O_CLOEXEC), "/dev/full");
    ASSERT_TRUE(file.is_open());
    BlockWriter writer(file, 100 * kBlockBytes, {.threads = threads, .buffers = 8});
    // Whoever fills buffers is told, and never waits for one that does not come.
    uint64_t block = 0;
    for (; block < 100; ++block) {
      char* buffer = writer.Take();
      if (buffer == nullptr) break;
      std::memset(buffer, 1, kBlockBytes);
      writer.Put(block, buffer);
    }
    EXPECT_LT(block, 100u);
    EXPECT_EQ(writer.Finish().status().code(), absl::StatusCode::kResourceExhausted);
    EXPECT_EQ(writer.Take(), nullptr);
  }
}

TEST_F(BlockWriterTest, AFewBuffersGoRound) {
  constexpr uint64_t kBlocks = 100;
  File file = Create(kBlocks * kBlockBytes);
  BlockWriter writer(file, kBlocks * kBlockBytes, {.threads = 2, .buffers = 9});
  std::set<char*> buffers;
  for (uint64_t block = 0; block < kBlocks; ++block) {
    char* buffer = writer.Take();
    ASSERT_NE(buffer, nullptr);
    buffers.insert(buffer);
    std::memset(buffer, 1, kBlockBytes);
    writer.Put(block, buffer);
  }
  ASSERT_OK(writer.Finish().status());
  EXPECT_LE(buffers.size(), 9u);
}

TEST_F(BlockWriterTest, TakeWaitsForABuffer) {
  File file = Create(20 * kBlockBytes);
  BlockWriter writer(file, 20 * kBlockBytes, {.threads = 1, .buffers = 8});
  std::vector<char*> taken;
  for (int i = 0; i < 8; ++i) taken.push_back(writer.Take());
  std::atomic<bool> got = false;
  std::thread waiter([&] {
    char* buffer = writer.Take();
    got = true;
    std::memset(buffer, 1, kBlockBytes);
    writer.Put(19, buffer);
  });
  std::this_thread::sleep_for(std::chrono::milliseconds(30));
  EXPECT_FALSE(got);
  std::memset(taken[0], 1, kBlockBytes);
  writer.Put(0, taken[0]);
  waiter.join();
  EXPECT_TRUE(got);
  const auto digests = writer.Finish();
  ASSERT_OK(digests.status());
  EXPECT_EQ(digests->size(), 2u);
}

// A small file needs few buffers, whatever was asked for, and an empty one none.
TEST_F(BlockWriterTest, SmallFiles) {
  for (const uint64_t bytes : {uint64_t{0}, uint64_t{1}, kBlockBytes, kBlockBytes + 1}) {
    std::filesystem::remove(path());
    File file = Create(bytes);
    BlockWriter writer(file, bytes, {});
    for (uint64_t at = 0; at < bytes; at += kBlockBytes) {
      char* buffer = writer.Take();
      ASSERT_NE(buffer, nullptr);
      std::memset(buffer, 7, std::min(kBlockBytes, bytes - at));
      writer.Put(at / kBlockBytes, buffer);
    }
    ASSERT_OK(writer.Finish().status());
    ASSERT_OK(file.Close());
    EXPECT_TRUE(Slurp(path()) == std::string(bytes, 7)) << bytes;
  }
}

}  // namespace
}  // namespace perdure
