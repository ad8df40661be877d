#include "runtime/agent/rank_frames.h"

#include <bit>
#include <limits>
#include <type_traits>
#include <utility>

#include "runtime/base/status.h"

namespace perdure {
namespace {

constexpr int64_t kRanksMax = 1 << 24, kLocalRanksMax = 64, kAxisMax = 1 << 20;
constexpr int64_t kAttemptMax = std::numeric_limits<int32_t>::max();

std::string ToHex(std::string_view bytes) {
  constexpr char kDigits[] = "0123456789abcdef";
  std::string hex;
  hex.reserve(2 * bytes.size());
  for (const char c : bytes) {
    const auto byte = static_cast<unsigned char>(c);
    hex += kDigits[byte >> 4];
    hex += kDigits[byte & 15];
  }
  return hex;
}

int HexDigit(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  return -1;
}

// False: it is no lower-case hex.
bool FromHex(std::string_view hex, std::string& bytes) {
  if (hex.size() % 2 != 0) return false;
  bytes.clear();
  bytes.reserve(hex.size() / 2);
  for (size_t i = 0; i < hex.size(); i += 2) {
    const int high = HexDigit(hex[i]), low = HexDigit(hex[i + 1]);
    if (high < 0 || low < 0) return false;
    bytes += static_cast<char>(high << 4 | low);
  }
  return true;
}

// Writes fields.
class Writer {
 public:
  Writer() : json_(Json::object()) {}
  template <typename T>
  void Int(const char* key, const T& value, int64_t = 0, int64_t = 0) {
    json_[key] = value;
  }
  void Unsigned(const char* key, const uint64_t& value) { json_[key] = value; }
  void Bool(const char* key, const bool& value) { json_[key] = value; }
  void Text(const char* key, const std::string& value) { json_[key] = value; }
  void People(const char* key, const std::string& value) {
    json_[key] = value.substr(0, kFrameTextMax);
  }
  void Double(const char* key, const double& value) { json_[key] = std::bit_cast<uint64_t>(value); }
  void Bytes(const char* key, const std::string& value) { json_[key] = ToHex(value); }
  void ByteList(const char* key, const std::vector<std::string>& value) {
    Json list = Json::array();
    for (const std::string& bytes : value) list.push_back(ToHex(bytes));
    json_[key] = std::move(list);
  }
  void Texts(const char* key, const std::vector<std::string>& value) { json_[key] = value; }
  void Ints(const char* key, const std::vector<int64_t>& value) { json_[key] = value; }
  void GapList(const char* key, const Gaps& value) { json_[key] = NumbersOf(value); }
  void StepList(const char* key, const std::vector<StepNumbers>& value) {
    json_[key] = HexOf(value);
  }
  void Hex(const char* key, const Digest& value) { json_[key] = value.Hex(); }
  void Kind(const char* key, const EvidenceKind& value) { json_[key] = NameOf(value); }
  void Place(const char* key, const FlipPlace& value) { json_[key] = NameOf(value); }
  void Object(const char* key, const Json& value) { json_[key] = value; }
  void MaybeText(const char* key, const std::optional<std::string>& value) {
    json_[key] = value.has_value() ? Json(*value) : Json();
  }
  template <typename T>
  void MaybeFields(const char* key, const std::optional<T>& value);
  void Needs(const char* key, const std::vector<HeldNeed>& value);
  Json Take() { return std::move(json_); }

 private:
  Json json_;
};

// Reads them, under the same names.
class Reader {
 public:
  Reader(const Json& json, std::string where) : json_(json), object_(json, std::move(where)) {}
  void Type(const char* type) { object_.Constant("type", type); }
  template <typename T>
  void Int(const char* key, T& value, int64_t least = 0,
           int64_t most = std::numeric_limits<T>::max()) {
    int64_t number = 0;
    object_.Int(key, &number, least, most);
    value = static_cast<T>(number);
  }
  void Unsigned(const char* key, uint64_t& value) { object_.Unsigned(key, &value); }
  void Bool(const char* key, bool& value) { object_.Bool(key, &value); }
  void Text(const char* key, std::string& value) { object_.String(key, &value); }
  void People(const char* key, std::string& value) {
    object_.String(key, &value);
    // Replaced bytes that were no UTF-8 take three each.
    if (value.size() > 3 * kFrameTextMax) object_.Fail(key, "is too long");
  }
  void Double(const char* key, double& value) {
    uint64_t bits = 0;
    object_.Unsigned(key, &bits);
    value = std::bit_cast<double>(bits);
  }
  void Bytes(const char* key, std::string& value) {
    std::string hex;
    object_.String(key, &hex);
    if (!FromHex(hex, value)) object_.Fail(key, "is not hex");
  }
  void ByteList(const char* key, std::vector<std::string>& value) {
    std::vector<std::string> list;
    object_.Strings(key, &list);
    for (const std::string& hex : list)
      if (!FromHex(hex, value.emplace_back())) object_.Fail(key, "has one that is not hex");
  }
  void Texts(const char* key, std::vector<std::string>& value) { object_.Strings(key, &value); }
  void Ints(const char* key, std::vector<int64_t>& value) { object_.Ints(key, &value); }
  void GapList(const char* key, Gaps& value) {
    std::vector<int64_t> numbers;
    object_.Ints(key, &numbers);
    if (absl::StatusOr<Gaps> gaps = GapsOf(numbers); gaps.ok())
      value = *std::move(gaps);
    else
      object_.Fail(key, Message(gaps.status()));
  }
  void StepList(const char* key, std::vector<StepNumbers>& value) {
    std::vector<std::string> hex;
    object_.Strings(key, &hex);
    if (absl::StatusOr<std::vector<StepNumbers>> steps = RecentOf(hex); steps.ok())
      value = *std::move(steps);
    else
      object_.Fail(key, Message(steps.status()));
  }
  void Hex(const char* key, Digest& value) { object_.Hex(key, &value); }
  void Kind(const char* key, EvidenceKind& value) {
    std::string name;
    object_.String(key, &name);
    if (const std::optional<EvidenceKind> kind = KindOf(name); kind.has_value())
      value = *kind;
    else
      object_.Fail(key, "is no kind of evidence");
  }
  void Place(const char* key, FlipPlace& value) {
    std::string name;
    object_.String(key, &name);
    if (const std::optional<FlipPlace> place = FlipPlaceOf(name); place.has_value())
      value = *place;
    else
      object_.Fail(key, "is no place of a flip");
  }
  void Object(const char* key, Json& value) {
    const auto at = json_.find(key);
    if (at == json_.end() || !at->is_object()) {
      object_.Fail(key, "is no object");
      return;
    }
    value = *at;
    object_.Constant(key, *at);  // Nobody else asks for it.
  }
  void MaybeText(const char* key, std::optional<std::string>& value) {
    if (IsNull(key)) return;
    object_.String(key, &value.emplace());
  }
  template <typename T>
  void MaybeFields(const char* key, std::optional<T>& value);
  void Needs(const char* key, std::vector<HeldNeed>& value);
  void Fail(const char* key, std::string_view what) { object_.Fail(key, what); }
  absl::Status Done() { return object_.Done(); }

 private:
  // A null that is there: asked for.
  bool IsNull(const char* key) {
    const auto at = json_.find(key);
    if (at == json_.end() || !at->is_null()) return false;
    object_.Constant(key, Json());
    return true;
  }

  const Json& json_;
  JsonObject object_;
};

// ---- the fields of each frame, for Writer and Reader alike

template <typename F, typename T>
concept Is = std::is_same_v<std::remove_const_t<F>, T>;

void Fields(auto& io, Is<to_rank::Prepare::Checkpoint> auto& f) {
  io.Text("path", f.path);
  io.Hex("manifest", f.manifest);
}

void Axes(auto& io, auto& f) {
  io.Int("tensor", f.tensor, 1, kAxisMax);
  io.Int("pipeline", f.pipeline, 1, kAxisMax);
  io.Int("data", f.data, 1, kAxisMax);
}

void Fields(auto& io, Is<to_rank::Prepare::Held> auto& f) {
  io.Unsigned("generation", f.generation);
  io.Int("step", f.step);
  Axes(io, f);
}

void Fields(auto& io, Is<to_rank::Prepare> auto& f) {
  io.Unsigned("generation", f.generation);
  io.Int("rank", f.rank, 0, kRanksMax);
  io.Int("local_rank", f.local_rank, 0, kLocalRanksMax - 1);
  Axes(io, f);
  io.Text("config", f.config);
  io.Text("data_directory", f.data_directory);
  io.Text("run_directory", f.run_directory);
  io.Text("run_id", f.run_id);
  io.Int("ranks_per_file", f.ranks_per_file, 1, kRanksMax);
  io.Int("host_threads", f.host_threads, 1, 1 << 16);
  io.Bool("spin", f.spin);
  io.Int("until_step", f.until_step, -1);
  io.Text("snapshot_directory", f.snapshot_directory);
  io.Ints("snapshot_peers", f.snapshot_peers);
  io.MaybeFields("checkpoint", f.checkpoint);
  io.MaybeFields("held", f.held);
  io.GapList("gaps", f.gaps);
  io.Int("begins", f.begins);
}

void Fields(auto& io, Is<to_rank::Table> auto& f) {
  io.Unsigned("generation", f.generation);
  io.Int("first", f.first, 0, kRanksMax);
  io.ByteList("addresses", f.addresses);
}
void Fields(auto& io, Is<to_rank::Load> auto& f) { io.Unsigned("generation", f.generation); }
void Fields(auto& io, Is<to_rank::Go> auto& f) { io.Unsigned("generation", f.generation); }
void Fields(auto& io, Is<to_rank::Freeze> auto& f) {
  io.Unsigned("generation", f.generation);
  io.Int("after", f.after, -1);
  io.Bool("last", f.last);
  io.Bool("pause", f.pause);
}

// Of an attempt at writing a step's state.
void Attempt(auto& io, auto& f) {
  io.Unsigned("generation", f.generation);
  io.Int("step", f.step);
  io.Int("attempt", f.attempt, 1, kAttemptMax);
}

void Fields(auto& io, Is<to_rank::Write> auto& f) {
  Attempt(io, f);
  io.Unsigned("term", f.term);
}
void Fields(auto& io, Is<to_rank::Verify> auto& f) {
  Attempt(io, f);
  io.Unsigned("term", f.term);
  io.Int("file", f.file, 0, kRanksMax);
  io.Bytes("part", f.part);
}
void Fields(auto& io, Is<to_rank::Settle> auto& f) {
  io.Unsigned("generation", f.generation);
  io.Int("step", f.step);
  io.Bool("committed", f.committed);
}
void Fields(auto& io, Is<to_rank::Corrupt> auto& f) {
  io.Unsigned("generation", f.generation);
  io.Int("step", f.step);
  io.Place("place", f.flip.place);
  io.Int("element", f.flip.element);
  io.Int("bit", f.flip.bit, 0, 31);
}
void Fields(auto& io, Is<to_rank::Fetched> auto& f) {
  io.Unsigned("generation", f.generation);
  io.Texts("paths", f.paths);
  io.People("error", f.error);
}
void Fields(auto& io, Is<to_rank::Stop> auto& f) {
  io.Unsigned("generation", f.generation);
  io.Bool("at_boundary", f.at_boundary);
}
void Fields(auto&, Is<to_rank::Leave> auto&) {}

void Fields(auto& io, Is<from_rank::Health> auto& f) { io.Object("report", f.report); }
void Fields(auto& io, Is<from_rank::Present> auto& f) {
  io.Unsigned("generation", f.generation);
  io.Bytes("address", f.address);
}
void Fields(auto& io, Is<from_rank::Connected> auto& f) { io.Unsigned("generation", f.generation); }
void Fields(auto& io, Is<from_rank::Certificate> auto& f) {
  io.Unsigned("generation", f.generation);
  io.Hex("certificate", f.certificate);
}
void Fields(auto& io, Is<from_rank::Loaded> auto& f) { io.Unsigned("generation", f.generation); }
void Fields(auto& io, Is<from_rank::Progress> auto& f) {
  io.Unsigned("generation", f.generation);
  io.Int("step", f.step);
  io.Int("work_steps", f.work.steps);
  io.Int("work_leaves", f.work.leaves);
  io.Int("work_nanoseconds", f.work.nanoseconds);
}

void Fields(auto& io, Is<StepReport> auto& r) {
  io.Int("step", r.step);
  io.Int("phase", r.phase, 0, 1 << 20);
  io.Int("samples", r.samples);
  io.Int("tokens", r.tokens);
  io.Int("step_tokens", r.step_tokens);
  io.Double("loss", r.loss);
  io.Double("grad_norm", r.grad_norm);
  io.Double("rate", r.rate);
  io.Int("batch", r.batch);
  io.Int("context", r.context);
  io.Double("seconds", r.seconds);
  io.Double("wait_seconds", r.wait_seconds);
  io.Int("first_sample", r.first_sample);
  io.Hex("sample_chain", r.sample_chain);
}

void Fields(auto& io, Is<from_rank::Step> auto& f) {
  io.Unsigned("generation", f.generation);
  Fields(io, f.report);
}
void Fields(auto& io, Is<Gap> auto& g) {
  io.Int("first_step", g.first_step, 1);
  io.Int("samples", g.samples, 1);
  io.Int("bad_step", g.bad_step, 1);
  io.Int("number", g.number, 1);
}
void Fields(auto& io, Is<from_rank::FoundBad> auto& f) {
  io.Unsigned("generation", f.generation);
  Fields(io, f.gap);
  io.People("why", f.why);
}
void Fields(auto& io, Is<from_rank::Waiting> auto& f) {
  io.Unsigned("generation", f.generation);
  io.Int("step", f.step);
}
void Fields(auto& io, Is<from_rank::Frozen> auto& f) {
  io.Unsigned("generation", f.generation);
  io.Int("step", f.step);
  io.Text("file", f.file);
}
void Fields(auto& io, Is<Trail> auto& t) {
  io.Hex("sample_chain", t.sample_chain);
  io.StepList("recent_steps", t.recent);
}
void Fields(auto& io, Is<from_rank::Written> auto& f) {
  Attempt(io, f);
  io.People("error", f.error);
  io.MaybeText("run", f.run);
  io.MaybeFields("trail", f.trail);
  io.Double("wait_seconds", f.wait_seconds);
  io.Double("freeze_seconds", f.freeze_seconds);
  io.Double("copy_seconds", f.copy_seconds);
  io.Double("write_seconds", f.write_seconds);
}
void Fields(auto& io, Is<from_rank::Voted> auto& f) {
  Attempt(io, f);
  io.Int("file", f.file, 0, kRanksMax);
  io.People("error", f.error);
}
void Fields(auto& io, Is<from_rank::Need> auto& f) {
  io.Unsigned("generation", f.generation);
  io.Needs("needs", f.needs);
}
void Fields(auto& io, Is<from_rank::OlderMayGo> auto& f) {
  io.Unsigned("generation", f.generation);
}
void Fields(auto& io, Is<from_rank::NoSnapshots> auto& f) {
  io.Unsigned("generation", f.generation);
}
void Fields(auto& io, Is<from_rank::Remark> auto& f) { io.People("line", f.line); }
void Fields(auto& io, Is<from_rank::Evidence> auto& f) { io.Object("evidence", f.evidence); }
void Fields(auto& io, Is<from_rank::Error> auto& f) {
  io.Int("code", f.code, 1, 1 << 16);
  io.People("message", f.message);
  io.Kind("kind", f.kind);
  io.Int("number", f.number);
  io.Bool("slot_lost", f.slot_lost);
}
void Fields(auto& io, Is<from_rank::BrokenOff> auto& f) {
  io.Unsigned("generation", f.generation);
  io.People("reason", f.reason);
}
void Fields(auto& io, Is<from_rank::Stopped> auto& f) { io.Unsigned("generation", f.generation); }
void Fields(auto& io, Is<from_rank::Done> auto& f) {
  io.Unsigned("generation", f.generation);
  io.Bool("complete", f.complete);
}

// ---- fields that are objects and lists themselves

template <typename T>
void Writer::MaybeFields(const char* key, const std::optional<T>& value) {
  if (!value.has_value()) {
    json_[key] = Json();
    return;
  }
  Writer fields;
  Fields(fields, *value);
  json_[key] = fields.Take();
}

template <typename T>
void Reader::MaybeFields(const char* key, std::optional<T>& value) {
  if (IsNull(key)) return;
  Json json = Json::object();
  Object(key, json);
  Reader fields(json, std::string(key) + ".");
  Fields(fields, value.emplace());
  if (const absl::Status status = fields.Done(); !status.ok()) Fail(key, Message(status));
}

void Writer::Needs(const char* key, const std::vector<HeldNeed>& value) {
  Json list = Json::array();
  for (const HeldNeed& need : value) {
    Json numbers = {need.rank};
    for (const ByteRange& range : need.ranges) {
      numbers.push_back(range.offset);
      numbers.push_back(range.bytes);
    }
    list.push_back(std::move(numbers));
  }
  json_[key] = std::move(list);
}

// Each need is [rank, offset, bytes, offset, bytes, ...].
void Reader::Needs(const char* key, std::vector<HeldNeed>& value) {
  const Json* list = object_.Array(key);
  if (list == nullptr) return;
  for (const Json& numbers : *list) {
    if (!numbers.is_array() || numbers.size() % 2 == 0) {
      Fail(key, "has one that is no rank with ranges");
      return;
    }
    std::vector<int64_t> all;
    for (const Json& number : numbers) {
      if (!number.is_number_unsigned() ||
          number.get<uint64_t>() > static_cast<uint64_t>(std::numeric_limits<int64_t>::max() / 2)) {
        Fail(key, "has something that is no number");
        return;
      }
      all.push_back(number.get<int64_t>());
    }
    if (all[0] > kRanksMax) Fail(key, "has a rank that is none");
    HeldNeed& need =
        value.emplace_back(HeldNeed{.rank = static_cast<int32_t>(all[0]), .ranges = {}});
    for (size_t i = 1; i < all.size(); i += 2)
      need.ranges.push_back({.offset = all[i], .bytes = all[i + 1]});
  }
}

// ---- all frames, by type

template <typename T>
constexpr const char* kType = nullptr;
#define PERDURE_FRAME_TYPE(frame, name) \
  template <>                           \
  constexpr const char* kType<frame> = name;
PERDURE_FRAME_TYPE(to_rank::Prepare, "prepare")
PERDURE_FRAME_TYPE(to_rank::Table, "table")
PERDURE_FRAME_TYPE(to_rank::Load, "load")
PERDURE_FRAME_TYPE(to_rank::Go, "go")
PERDURE_FRAME_TYPE(to_rank::Freeze, "freeze")
PERDURE_FRAME_TYPE(to_rank::Write, "write")
PERDURE_FRAME_TYPE(to_rank::Verify, "verify")
PERDURE_FRAME_TYPE(to_rank::Settle, "settle")
PERDURE_FRAME_TYPE(to_rank::Corrupt, "corrupt")
PERDURE_FRAME_TYPE(to_rank::Fetched, "fetched")
PERDURE_FRAME_TYPE(to_rank::Stop, "stop")
PERDURE_FRAME_TYPE(to_rank::Leave, "leave")
PERDURE_FRAME_TYPE(from_rank::Health, "health")
PERDURE_FRAME_TYPE(from_rank::Present, "present")
PERDURE_FRAME_TYPE(from_rank::Connected, "connected")
PERDURE_FRAME_TYPE(from_rank::Certificate, "certificate")
PERDURE_FRAME_TYPE(from_rank::Loaded, "loaded")
PERDURE_FRAME_TYPE(from_rank::Progress, "progress")
PERDURE_FRAME_TYPE(from_rank::Step, "step")
PERDURE_FRAME_TYPE(from_rank::FoundBad, "found_bad")
PERDURE_FRAME_TYPE(from_rank::Waiting, "waiting")
PERDURE_FRAME_TYPE(from_rank::Frozen, "frozen")
PERDURE_FRAME_TYPE(from_rank::Written, "written")
PERDURE_FRAME_TYPE(from_rank::Voted, "voted")
PERDURE_FRAME_TYPE(from_rank::Need, "need")
PERDURE_FRAME_TYPE(from_rank::OlderMayGo, "older_may_go")
PERDURE_FRAME_TYPE(from_rank::NoSnapshots, "no_snapshots")
PERDURE_FRAME_TYPE(from_rank::Remark, "remark")
PERDURE_FRAME_TYPE(from_rank::Evidence, "evidence")
PERDURE_FRAME_TYPE(from_rank::Error, "error")
PERDURE_FRAME_TYPE(from_rank::BrokenOff, "broken_off")
PERDURE_FRAME_TYPE(from_rank::Stopped, "stopped")
PERDURE_FRAME_TYPE(from_rank::Done, "done")
#undef PERDURE_FRAME_TYPE

template <typename Frame>
Json Write(const Frame& frame) {
  return std::visit(
      [](const auto& f) {
        Writer writer;
        Fields(writer, f);
        Json json = writer.Take();
        json["type"] = kType<std::remove_cvref_t<decltype(f)>>;
        return json;
      },
      frame);
}

// One of `Frames`, by its type.
template <typename Frame, size_t kIndex = 0>
absl::StatusOr<Frame> Read(const Json& json, const std::string& type) {
  if constexpr (kIndex == std::variant_size_v<Frame>) {
    return DataLoss("a frame of type '{}', which nobody knows", type.substr(0, 64));
  } else {
    using F = std::variant_alternative_t<kIndex, Frame>;
    if (type != kType<F>) return Read<Frame, kIndex + 1>(json, type);
    Reader reader(json, "");
    reader.Type(kType<F>);
    F frame;
    Fields(reader, frame);
    if (const absl::Status status = reader.Done(); !status.ok())
      return DataLoss("a frame '{}': {}", type, Message(status));
    return Frame(std::move(frame));
  }
}

template <typename Frame>
absl::StatusOr<Frame> ReadAny(const Json& json) {
  const auto type = json.is_object() ? json.find("type") : json.end();
  if (type == json.end() || !type->is_string()) return DataLoss("a frame without a type");
  return Read<Frame>(json, type->template get<std::string>());
}

}  // namespace

Json ToJson(const to_rank::Frame& frame) { return Write(frame); }
Json ToJson(const from_rank::Frame& frame) { return Write(frame); }
absl::StatusOr<to_rank::Frame> ParseToRank(const Json& json) {
  return ReadAny<to_rank::Frame>(json);
}
absl::StatusOr<from_rank::Frame> ParseFromRank(const Json& json) {
  return ReadAny<from_rank::Frame>(json);
}

}  // namespace perdure
