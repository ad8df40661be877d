#include "tests/security/job.h"

#include <fcntl.h>
#include <linux/close_range.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <new>
#include <thread>
#include <vector>

#include "runtime/agent/run_key.h"
#include "runtime/base/check.h"
#include "runtime/base/files.h"
#include "runtime/base/status.h"
#include "runtime/wire/event_loop.h"
#include "runtime/wire/wire_sockets.h"
#include "tests/security/attacker.h"

namespace perdure {
namespace {

// Above those that a new process gets.
int Above(int fd) {
  PERDURE_CHECK(fd >= 0);
  const int high = ::fcntl(fd, F_DUPFD_CLOEXEC, 10);
  ::close(fd);
  PERDURE_CHECK(high >= 10);
  return high;
}

[[noreturn]] void Become(int program, int board, const std::string& directory,
                         const std::string& log, const std::vector<std::string>& words) {
  const int out = ::open(log.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
  const int in = ::open("/dev/null", O_RDONLY | O_CLOEXEC);
  ::dup2(in, 0);
  ::dup2(out, 1);
  ::dup2(out, 2);
  ::dup2(board, kBoardDescriptor);
  ::syscall(SYS_close_range, kBoardDescriptor + 1, 9U, 0U);
  ::syscall(SYS_close_range, 10U, ~0U, static_cast<unsigned>(CLOSE_RANGE_CLOEXEC));
  // What a careless starter leaves behind: nothing of it may matter.
  ::umask(0);
  const rlimit unlimited{.rlim_cur = RLIM_INFINITY, .rlim_max = RLIM_INFINITY};
  ::setrlimit(RLIMIT_CORE, &unlimited);
  // Where it could leave a core.
  if (::chdir(directory.c_str()) != 0 || !BecomeUser(kJobUser)) ::_exit(125);
  std::vector<char*> arguments;
  for (const std::string& word : words) arguments.push_back(const_cast<char*>(word.c_str()));
  arguments.push_back(nullptr);
  // By descriptor: the program may lie where the job's user cannot go.
  ::fexecve(program, arguments.data(), environ);
  ::_exit(126);
}

}  // namespace

void GiveToJob(const std::string& path) {
  PERDURE_CHECK(::chown(path.c_str(), kJobUser, kJobUser) == 0);
  PERDURE_CHECK(::chmod(path.c_str(), 0755) == 0);
}

Job::Job(const JobParts& parts) : parts_(parts) {
  GiveToJob(directory_.path());
  board_fd_ = Above(::memfd_create("board", MFD_CLOEXEC));
  PERDURE_CHECK(::ftruncate(board_fd_, sizeof(Board)) == 0);
  void* const page =
      ::mmap(nullptr, sizeof(Board), PROT_READ | PROT_WRITE, MAP_SHARED, board_fd_, 0);
  PERDURE_CHECK(page != MAP_FAILED);
  PERDURE_CHECK(::madvise(page, sizeof(Board), MADV_DONTFORK) == 0);
  board_ = new (page) Board;
  program_ = Above(::open(PERDURE_BINARY_DIR "/tests/perdure_agent_node", O_RDONLY | O_CLOEXEC));
}

Job::~Job() {
  while (!pids_.empty()) KillNode(pids_.begin()->first);
  ::munmap(board_, sizeof(Board));
  ::close(board_fd_);
  ::close(program_);
}

std::string Job::Log(uint32_t node) const {
  return ReadFile(fmt::format("{}/node-{}.log", directory(), node)).value_or("");
}

void Job::StartNodeIn(const std::string& run_directory, uint32_t node, uint16_t port) {
  PERDURE_CHECK(!pids_.contains(node));
  new (&board_->nodes[node]) NodeBoard;
  const std::vector<std::string> words = {"perdure_agent_node",
                                          run_directory,
                                          fmt::format("--node={}", node),
                                          fmt::format("--nodes={}", kJobNodes),
                                          fmt::format("--job={}", kJobNumber),
                                          fmt::format("--restart={}", kJobRestart),
                                          fmt::format("--port={}", port),
                                          fmt::format("--descriptors={}", parts_.descriptors)};
  const std::string log = fmt::format("{}/node-{}.log", directory(), node);
  const pid_t child = ::fork();
  PERDURE_CHECK(child >= 0);
  if (child == 0) Become(program_, board_fd_, directory(), log, words);
  pids_[node] = child;
}

bool Job::Start() {
  for (uint32_t node = 0; node < kLateNode; ++node) {
    StartNode(node);
    if (!Until([&] { return at(node).beats > 0 || Ended(node).has_value(); })) return false;
    if (!pids_.contains(node)) return false;
  }
  if (parts_.listable)
    for (const std::string& path : {run(), run() + "/log"})
      PERDURE_CHECK(::chmod(path.c_str(), 0755) == 0);
  return Steps(5);
}

void Job::KillNode(uint32_t node) {
  ::kill(pids_.at(node), SIGKILL);
  (void)Until([&] { return Ended(node).has_value(); });
}

std::optional<int> Job::Ended(uint32_t node) {
  const auto child = pids_.find(node);
  int status = 0;
  if (child == pids_.end() || ::waitpid(child->second, &status, WNOHANG) != child->second)
    return std::nullopt;
  pids_.erase(child);
  return status;
}

int Job::WaitFor(uint32_t node) {
  std::optional<int> status;
  if (Until([&] { return (status = Ended(node)).has_value(); })) return *status;
  KillNode(node);
  return -1;
}

uint32_t Job::Lead() const {
  for (const auto& [node, _] : pids_)
    if (board_->nodes[node].leads) return node;
  return kBoardNodes;
}

uint32_t Job::Member() const { return Lead() == kLateNode - 1 ? 0 : kLateNode - 1; }

WireAddress Job::Address(uint32_t node) const {
  return *ParseWireAddress("127.0.0.1", static_cast<uint16_t>(board_->nodes[node].port));
}

uint64_t Job::Refused(Refusal refusal) const {
  uint64_t count = 0;
  for (const NodeBoard& node : board_->nodes) count += node[refusal];
  return count;
}

std::string Job::FileKey() const { return *ReadFile(run() + "/control/run.key"); }
std::string Job::RunId() const { return RunIdFromKey(FileKey()); }

JobKey Job::Key(uint64_t job, uint64_t restart) const {
  const std::string key = FileKey();
  return JobKey::Derive(
      {.file_key = std::span(reinterpret_cast<const uint8_t*>(key.data()), key.size()),
       .second_leg = {},
       .run_id = RunIdFromKey(key),
       .job = job,
       .restart = restart});
}

bool Job::Until(const std::function<bool()>& done, absl::Duration within) {
  const absl::Time end = MonotonicNow() + within;
  while (!done()) {
    if (MonotonicNow() > end) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  return true;
}

bool Job::Steps(int64_t steps) {
  std::map<uint32_t, int64_t> goals;
  for (uint32_t node = 0; node < kLateNode; ++node) goals[node] = at(node).step + steps;
  return Until([&] {
    return std::all_of(goals.begin(), goals.end(),
                       [&](const auto& goal) { return at(goal.first).step >= goal.second; });
  });
}

void Job::Redirect(uint32_t node, uint16_t port, uint16_t to) {
  NodeBoard& board = at(node);
  const uint32_t now = board.redirect_from == port ? board.redirect_to.load() : port;
  board.redirect_to = to;
  board.redirect_from = to == 0 ? 0 : port;
  board.cut = now;
  (void)Until([&] { return board.cut == 0; });
}

}  // namespace perdure
