// In virtual time.
#include "runtime/control/save_watch.h"

#include <gtest/gtest.h>

namespace perdure {
namespace {

const absl::Time kStart = absl::UnixEpoch() + absl::Hours(100);

// "rank what seconds" of each.
std::vector<std::string> Words(const std::vector<SaveWatch::Stall>& stalls) {
  std::vector<std::string> words;
  for (const SaveWatch::Stall& stall : stalls)
    words.push_back(std::to_string(stall.rank) + " " + stall.what + " " +
                    std::to_string(absl::ToInt64Seconds(stall.waited)));
  return words;
}
using Said = std::vector<std::string>;

TEST(SaveWatch, TellsOncePerDoubling) {
  SaveWatch watch(absl::Minutes(2));
  watch.Begin(kStart, 3, "writing a");
  std::vector<int64_t> told;
  for (int64_t second = 0; second <= 4000; ++second)
    for (const SaveWatch::Stall& stall : watch.Due(kStart + absl::Seconds(second))) {
      EXPECT_EQ(stall.rank, 3);
      EXPECT_EQ(stall.waited, absl::Seconds(second));
      told.push_back(second);
    }
  EXPECT_EQ(told, (std::vector<int64_t>{120, 240, 480, 960, 1920, 3840}));
}

TEST(SaveWatch, ALookAfterALongTimeTellsOnce) {
  SaveWatch watch(absl::Minutes(2));
  watch.Begin(kStart, -1, "publishing");
  EXPECT_EQ(Words(watch.Due(kStart + absl::Seconds(1000))), Said{"-1 publishing 1000"});
  EXPECT_EQ(Words(watch.Due(kStart + absl::Seconds(1001))), Said{});
  EXPECT_EQ(Words(watch.Due(kStart + absl::Seconds(1920))), Said{"-1 publishing 1920"});
}

TEST(SaveWatch, WhatEndsOrBeginsAnewIsNotToldOf) {
  SaveWatch watch(absl::Minutes(2));
  for (int rank = 0; rank < 3; ++rank) watch.Begin(kStart, rank, "writing a");
  const absl::Time later = kStart + absl::Seconds(119);
  EXPECT_EQ(Words(watch.Due(later)), Said{});
  watch.End(0, "writing a");
  watch.End(1, "writing a");
  watch.End(2, "writing b");
  watch.Begin(later, 1, "reading b");
  EXPECT_EQ(Words(watch.Due(kStart + absl::Seconds(120))), Said{"2 writing a 120"});
  EXPECT_EQ(Words(watch.UnderWay(kStart + absl::Seconds(121))),
            (Said{"1 reading b 2", "2 writing a 121"}));
  EXPECT_EQ(Words(watch.Due(later + absl::Seconds(120))), Said{"1 reading b 120"});
  watch.Clear();
  EXPECT_EQ(Words(watch.Due(kStart + absl::Hours(9))), Said{});
  EXPECT_EQ(Words(watch.UnderWay(kStart)), Said{});
}

}  // namespace
}  // namespace perdure
