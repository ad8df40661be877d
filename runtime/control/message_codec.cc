#include "runtime/control/message_codec.h"

#include <algorithm>
#include <concepts>
#include <limits>
#include <type_traits>
#include <utility>

#include "runtime/base/check.h"
#include "runtime/base/status.h"

namespace perdure {
namespace {

template <typename T, typename... Of>
concept OneOf = (std::same_as<std::remove_const_t<T>, Of> || ...);

// ---- the fields of each struct, for whoever wants to visit them

void Fields(auto& io, OneOf<LayoutShape> auto& m) { io(m.tensor, m.pipeline, m.data); }
void Fields(auto& io, OneOf<Holding> auto& m) { io(m.generation, m.step, m.rank); }
void Fields(auto& io, OneOf<Resume::Held> auto& m) { io(m.rank, m.node); }
void Fields(auto& io, OneOf<Resume> auto& m) {
  io(m.from_checkpoint, m.generation, m.step, m.shape, m.elsewhere, m.checkpoint);
}
void Fields(auto& io, OneOf<msg::Prepare::Assignment> auto& m) { io(m.local_rank, m.rank); }
void Fields(auto& io, OneOf<WorkDone> auto& m) { io(m.steps, m.leaves, m.nanoseconds); }
void Fields(auto& io, OneOf<Gap> auto& m) { io(m.first_step, m.samples, m.bad_step, m.number); }
void Fields(auto& io, OneOf<BadStep> auto& m) { io(m.gap, m.why); }
void Fields(auto& io, OneOf<msg::Report> auto& m) {
  io(m.term, m.incarnation, m.sequence, m.echo, m.slots, m.domain, m.leaving, m.generation, m.stage,
     m.finished, m.failed_local_rank, m.failure, m.failure_number, m.frozen, m.waits, m.works,
     m.no_snapshots, m.bad);
}
void Fields(auto& io, OneOf<msg::Stopped> auto& m) {
  io(m.term, m.incarnation, m.generation, m.holdings);
}
void Fields(auto& io, OneOf<msg::Present> auto& m) { io(m.term, m.generation, m.addresses); }
void Fields(auto& io, OneOf<msg::Voted> auto& m) {
  io(m.term, m.generation, m.step, m.attempt, m.file, m.ok);
}
void Fields(auto& io, OneOf<msg::Wrote> auto& m) {
  io(m.term, m.generation, m.step, m.attempt, m.ok, m.packed);
}
void Fields(auto& io, OneOf<msg::NeedTable, msg::Go> auto& m) { io(m.term, m.generation); }
void Fields(auto& io, OneOf<msg::Answer> auto& m) {
  io(m.term, m.sequence, m.stamp, m.generation, m.lease);
}
void Fields(auto& io, OneOf<msg::Announce, msg::Probe, msg::Leading> auto& m) { io(m.term); }
void Fields(auto& io, OneOf<msg::Stop> auto& m) {
  io(m.term, m.generation, m.at_boundary, m.stalled);
}
void Fields(auto& io, OneOf<msg::Prepare> auto& m) {
  io(m.term, m.generation, m.shape, m.ranks, m.resume, m.children, m.gaps, m.begins);
}
void Fields(auto& io, OneOf<msg::Table> auto& m) {
  io(m.term, m.generation, m.ranks, m.first, m.count, m.packed);
}
void Fields(auto& io, OneOf<msg::Save> auto& m) {
  io(m.term, m.generation, m.after, m.last, m.pause);
}
void Fields(auto& io, OneOf<msg::Write> auto& m) { io(m.term, m.generation, m.step, m.attempt); }
void Fields(auto& io, OneOf<msg::Verify> auto& m) {
  io(m.term, m.generation, m.step, m.attempt, m.file, m.packed);
}
void Fields(auto& io, OneOf<msg::Settle> auto& m) { io(m.term, m.generation, m.step, m.committed); }
void Fields(auto& io, OneOf<msg::Bye> auto& m) { io(m.term, m.exit_code); }

// The highest value of an enum that travels.
uint64_t Highest(NodeStage) { return static_cast<uint64_t>(NodeStage::kDone); }
uint64_t Highest(EvidenceKind) { return kEvidenceKinds - 1; }

class Writer {
 public:
  explicit Writer(std::string& bytes) : bytes_(bytes) {}

  template <typename... T>
  void operator()(const T&... field) {
    (Put(field), ...);
  }

 private:
  void Number(uint64_t value) {
    for (; value >= 0x80; value >>= 7) bytes_.push_back(static_cast<char>(value | 0x80));
    bytes_.push_back(static_cast<char>(value));
  }
  template <typename T>
  void Put(const T& field) {
    if constexpr (std::is_enum_v<T> || std::unsigned_integral<T>)
      Number(static_cast<uint64_t>(field));
    else if constexpr (std::signed_integral<T>)
      Number((static_cast<uint64_t>(field) << 1) ^ static_cast<uint64_t>(int64_t{field} >> 63));
    else
      Fields(*this, field);
  }
  void Put(const std::string& field) {
    Number(field.size());
    bytes_ += field;
  }
  template <typename T>
  void Put(const std::vector<T>& field) {
    Number(field.size());
    for (const T& item : field) Put(item);
  }

  std::string& bytes_;
};

class Reader {
 public:
  explicit Reader(std::string_view bytes) : bytes_(bytes) {}

  template <typename... T>
  void operator()(T&... field) {
    (Take(field), ...);
  }
  bool whole() const { return ok_ && bytes_.empty(); }

 private:
  uint64_t Number() {
    uint64_t value = 0;
    for (int shift = 0; shift < 64; shift += 7) {
      if (bytes_.empty()) break;
      const auto byte = static_cast<uint8_t>(bytes_.front());
      bytes_.remove_prefix(1);
      const uint64_t part = byte & 0x7f;
      if (shift == 63 && part > 1) break;
      value |= part << shift;
      if (byte >= 0x80) continue;
      // One number has one form.
      if (part == 0 && shift > 0) break;
      return value;
    }
    ok_ = false;
    return 0;
  }
  template <typename T>
  void Take(T& field) {
    if constexpr (std::same_as<T, bool>) {
      const uint64_t value = Number();
      ok_ &= value <= 1;
      field = value == 1;
    } else if constexpr (std::is_enum_v<T>) {
      const uint64_t value = Number();
      ok_ &= value <= Highest(T{});
      field = ok_ ? static_cast<T>(value) : T{};
    } else if constexpr (std::unsigned_integral<T>) {
      const uint64_t value = Number();
      ok_ &= value <= std::numeric_limits<T>::max();
      field = static_cast<T>(value);
    } else if constexpr (std::signed_integral<T>) {
      const uint64_t zigzag = Number();
      const auto value = static_cast<int64_t>((zigzag >> 1) ^ (~(zigzag & 1) + 1));
      ok_ &= std::in_range<T>(value);
      field = static_cast<T>(value);
    } else {
      Fields(*this, field);
    }
  }
  // Each item takes a byte at least.
  bool Count(uint64_t& count) {
    count = Number();
    ok_ &= count <= bytes_.size();
    return ok_;
  }
  void Take(std::string& field) {
    uint64_t size = 0;
    if (!Count(size)) return;
    field.assign(bytes_.substr(0, size));
    bytes_.remove_prefix(size);
  }
  template <typename T>
  void Take(std::vector<T>& field) {
    uint64_t size = 0;
    if (!Count(size)) return;
    field.resize(size);
    for (uint64_t i = 0; i < size && ok_; ++i) Take(field[i]);
  }

  std::string_view bytes_;
  bool ok_ = true;
};

template <size_t I = 0>
bool Emplace(size_t type, ControlMessage& message) {
  if constexpr (I < std::variant_size_v<ControlMessage>) {
    if (type != I) return Emplace<I + 1>(type, message);
    message.emplace<I>();
    return true;
  }
  return false;
}

// What nobody can say.
absl::Status CheckSense(const msg::Report& report) {
  if (report.works.size() > kNodeRanksMax ||
      std::any_of(report.works.begin(), report.works.end(), [](const WorkDone& work) {
        return work.steps < 0 || work.leaves < 0 || work.nanoseconds < 0;
      }))
    return DataLoss("a report speaks of the work of {} ranks, or of less than none: a node has {}",
                    report.works.size(), kNodeRanksMax);
  if (report.bad == BadStep{}) return absl::OkStatus();
  if (report.bad.why.size() > kBadStepWordsMax)
    return DataLoss("a report has {} bytes about a bad step; {} are the most",
                    report.bad.why.size(), kBadStepWordsMax);
  return CheckGaps({&report.bad.gap, 1});
}

absl::Status CheckSense(const msg::Prepare& prepare) {
  if (prepare.begins < 0)
    return DataLoss("a run that began at step {} is to go on", prepare.begins);
  return CheckGaps(prepare.gaps);
}

absl::Status CheckSense(const auto&) { return absl::OkStatus(); }

}  // namespace

bool ForCoordinator(const ControlMessage& message) {
  return std::holds_alternative<msg::Report>(message) ||
         std::holds_alternative<msg::Stopped>(message) ||
         std::holds_alternative<msg::Present>(message) ||
         std::holds_alternative<msg::Voted>(message) ||
         std::holds_alternative<msg::Wrote>(message) ||
         std::holds_alternative<msg::NeedTable>(message) ||
         std::holds_alternative<msg::Probe>(message);
}

void PackAddress(const std::string& address, std::string& packed) {
  PERDURE_CHECK(address.size() <= 0xffff);
  packed.push_back(static_cast<char>(address.size() & 0xff));
  packed.push_back(static_cast<char>(address.size() >> 8));
  packed += address;
}

absl::StatusOr<std::vector<std::string>> UnpackAddresses(std::string_view packed, int32_t count) {
  std::vector<std::string> addresses;
  while (packed.size() >= 2) {
    const size_t size =
        static_cast<uint8_t>(packed[0]) | static_cast<size_t>(static_cast<uint8_t>(packed[1])) << 8;
    if (packed.size() < 2 + size) break;
    addresses.emplace_back(packed.substr(2, size));
    packed.remove_prefix(2 + size);
  }
  if (!packed.empty() || addresses.size() != static_cast<size_t>(count))
    return DataLoss("a table of {} rank addresses holds {} and {} bytes more", count,
                    addresses.size(), packed.size());
  return addresses;
}

void EncodeMessage(const ControlMessage& message, std::string& bytes) {
  bytes.push_back(static_cast<char>(message.index()));
  Writer writer(bytes);
  std::visit([&](const auto& m) { Fields(writer, m); }, message);
}

absl::StatusOr<ControlMessage> DecodeMessage(std::string_view bytes) {
  ControlMessage message;
  if (bytes.empty() || !Emplace(static_cast<uint8_t>(bytes.front()), message))
    return DataLoss(
        "a control message of unknown type ({} bytes): is another version of Perdure in this job?",
        bytes.size());
  Reader reader(bytes.substr(1));
  std::visit([&](auto& m) { Fields(reader, m); }, message);
  if (!reader.whole())
    return DataLoss("a control message of type {} and {} bytes is torn or malformed",
                    message.index(), bytes.size());
  RETURN_IF_ERROR(std::visit([](const auto& m) { return CheckSense(m); }, message));
  return message;
}

}  // namespace perdure
