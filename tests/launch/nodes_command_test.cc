// perdure nodes, as users have it.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <nlohmann/json.hpp>

#include "absl/time/clock.h"
#include "launch/node_book.h"
#include "tests/launch/perdure_command.h"

namespace perdure {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using testing::HasSubstr;

class NodesCommand : public testing::Test {
 protected:
  NodesCommand() : run_(FreshFolder("nodes_command")) {}
  ~NodesCommand() override { fs::remove_all(run_); }

  void Hold(const std::string& node, EvidenceKind kind) const {
    ASSERT_EQ(NodeBook(run_).Append("8-0", {.node = node,
                                            .time = absl::Now() - absl::Hours(1),
                                            .kind = kind,
                                            .generation = 3,
                                            .job = "12"}),
              absl::OkStatus());
  }
  json Listed() const {
    const CommandResult listed = Perdure({"nodes", run_, "--json"});
    EXPECT_EQ(listed.exit_code, 0) << listed.errors;
    return json::parse(listed.output);
  }

  const std::string run_;
};

TEST_F(NodesCommand, ListsWhatIsKnown) {
  EXPECT_THAT(Perdure({"nodes", run_}).output, HasSubstr("nothing is known"));
  EXPECT_EQ(Listed()["nodes"], json::array());
  Hold("n1", EvidenceKind::kSilentCorruption);
  Hold("n2", EvidenceKind::kRankCrashed);
  const CommandResult table = Perdure({"nodes", run_});
  EXPECT_EQ(table.exit_code, 0);
  EXPECT_THAT(table.output, HasSubstr("n1       100  excluded        1  1 x silent corruption; "));
  EXPECT_THAT(table.output, HasSubstr("n2        25  used            1  1 x rank crashed; "));
  const json listed = Listed();
  ASSERT_EQ(listed["nodes"].size(), 2U);
  EXPECT_EQ(listed["nodes"][0]["node"], "n1");
  EXPECT_EQ(listed["nodes"][0]["points"], 100);
  EXPECT_EQ(listed["nodes"][0]["verdict"], "excluded");
  EXPECT_EQ(listed["nodes"][0]["entries"], 1);
  EXPECT_THAT(listed["nodes"][0]["reason"], HasSubstr("n1: 1 x silent corruption"));
  EXPECT_EQ(listed["nodes"][1]["verdict"], "used");
  EXPECT_EQ(listed["programs"], json::array());
  EXPECT_EQ(listed["passed_over"], 0);
}

// One node is done without, of a run on few; the other would be.
TEST_F(NodesCommand, TellsOfTheCap) {
  // Of equals the one with the newer evidence, or the first by name.
  Hold("n2", EvidenceKind::kSilentCorruption);
  Hold("n1", EvidenceKind::kSilentCorruption);
  const json listed = Listed();
  EXPECT_EQ(listed["nodes"][0]["verdict"], "excluded");
  EXPECT_EQ(listed["nodes"][1]["verdict"], "avoided");
}

TEST_F(NodesCommand, ClearsPinsAndUnpins) {
  Hold("n1", EvidenceKind::kSilentCorruption);
  const CommandResult pinned = Perdure({"nodes", "pin", run_, "n1"});
  EXPECT_EQ(pinned.exit_code, 0) << pinned.errors;
  EXPECT_EQ(pinned.output, "n1 is pinned\n");
  EXPECT_EQ(Listed()["nodes"][0]["verdict"], "pinned");
  EXPECT_EQ(json::parse(Perdure({"nodes", "unpin", run_, "n1", "--json"}).output),
            (json{{"node", "n1"}, {"now", "unpinned"}}));
  EXPECT_EQ(Listed()["nodes"][0]["verdict"], "excluded");
  EXPECT_EQ(Perdure({"nodes", "clear", run_, "n1"}).output, "n1 is cleared\n");
  EXPECT_EQ(Listed()["nodes"][0]["verdict"], "used");
  EXPECT_EQ(Listed()["nodes"][0]["points"], 0);
}

TEST_F(NodesCommand, WhatCannotBeIsRefused) {
  const auto refused = [](const std::vector<std::string>& arguments, int exit_code,
                          const std::string& words) {
    const CommandResult result = Perdure(arguments);
    EXPECT_EQ(result.exit_code, exit_code) << result.output;
    EXPECT_THAT(result.errors, HasSubstr(words));
  };
  refused({"nodes", "clear", run_, "n7"}, 1, "nothing is known against node n7");
  refused({"nodes", "unpin", run_, "n7"}, 1, "n7 is not pinned");
  refused({"nodes", "pin", run_, "n[1-2]"}, 2, "is no node's name");
  refused({"nodes", "pin", run_ + "/absent", "n1"}, 2, "is no run's directory");
  refused({"nodes", run_ + "/absent"}, 2, "is no run's directory");
  refused({"nodes"}, 2, "RUN_DIR");
  refused({"nodes", "pin", run_}, 2, "NODE");
  EXPECT_TRUE(fs::is_empty(run_));
}

}  // namespace
}  // namespace perdure
