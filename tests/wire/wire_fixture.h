// What tests with several nodes in one loop share.
#pragma once

#include <gtest/gtest.h>

#include <functional>
#include <memory>
#include <string>

#include "tests/wire/wire_harness.h"

namespace perdure {

class WireTest : public testing::Test {
 protected:
  WireTest() : loop_(*EventLoop::New()) {}

  std::unique_ptr<WireNode> Node(uint32_t node, std::function<void(WireOptions*)> change = {}) {
    return std::make_unique<WireNode>(loop_.get(),
                                      NodeParts{.node = node, .change = std::move(change)});
  }
  bool Until(const std::function<bool()>& done) { return RunUntil(*loop_, done); }
  // Connects; the id at the one who connects.
  ConnectionId Join(WireNode& from, WireNode& to, uint32_t node) {
    const size_t before = to.opened.size();
    const ConnectionId id = from.ConnectTo(to, node);
    EXPECT_TRUE(Until([&] { return to.opened.size() > before; }));
    return id;
  }

  const std::unique_ptr<EventLoop> loop_;
};

// Text that shows when pieces of it are lost or exchanged.
inline std::string Patterned(size_t bytes, int seed) {
  std::string text(bytes, '\0');
  for (size_t i = 0; i < bytes; ++i) text[i] = static_cast<char>(i * 31 + seed + (i >> 8));
  return text;
}

}  // namespace perdure
