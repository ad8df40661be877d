#include "tests/tidy_rules.h"

#include <algorithm>
#include <cctype>
#include <filesystem>
#include <iterator>
#include <set>

namespace perdure {
namespace {

namespace fs = std::filesystem;

bool StartsWithAny(std::string_view text, const Words& prefixes) {
  return std::any_of(prefixes.begin(), prefixes.end(),
                     [&](std::string_view prefix) { return text.starts_with(prefix); });
}

bool IsHeader(const SourceFile& file) {
  return file.path.ends_with(".h") || file.path.ends_with(".cuh");
}
// What is compiled by itself, and therefore listed.
bool IsSource(const SourceFile& file) {
  return file.path.ends_with(".cc") || file.path.ends_with(".cu");
}
bool IsCpp(const SourceFile& file) { return IsHeader(file) || IsSource(file); }

std::string FolderOf(std::string_view path) {
  const size_t slash = path.rfind('/');
  return std::string(slash == std::string_view::npos ? "" : path.substr(0, slash));
}

std::vector<std::string> Lines(std::string_view text) {
  std::vector<std::string> lines;
  while (!text.empty()) {
    const size_t end = std::min(text.find('\n'), text.size());
    lines.emplace_back(text.substr(0, end));
    text.remove_prefix(std::min(end + 1, text.size()));
  }
  return lines;
}

size_t LineOf(std::string_view text, size_t position) {
  return 1 + static_cast<size_t>(std::count(text.begin(), text.begin() + position, '\n'));
}

bool IsWordCharacter(char c) { return std::isalnum(static_cast<unsigned char>(c)) || c == '_'; }

// Positions of `word` that are not part of a longer identifier.
std::vector<size_t> FindWord(std::string_view text, std::string_view word) {
  std::vector<size_t> found;
  for (size_t at = text.find(word); at != text.npos; at = text.find(word, at + 1)) {
    const bool begins = at == 0 || !IsWordCharacter(text[at - 1]) || !IsWordCharacter(word.front());
    const size_t end = at + word.size();
    const bool ends =
        end == text.size() || !IsWordCharacter(text[end]) || !IsWordCharacter(word.back());
    if (begins && ends) found.push_back(at);
  }
  return found;
}

std::string At(const SourceFile& file, size_t line) {
  return file.path + ":" + std::to_string(line) + ": ";
}

}  // namespace

std::string BlankOut(const std::string& text) {
  std::string code = text;
  const auto blank = [&](size_t begin, size_t end) {
    for (size_t i = begin; i < std::min(end, code.size()); ++i)
      if (code[i] != '\n') code[i] = ' ';
  };
  size_t i = 0;
  while (i < text.size()) {
    const std::string_view rest = std::string_view(text).substr(i);
    size_t end = i + 1;
    if (rest.starts_with("//")) {
      end = std::min(text.find('\n', i), text.size());
      blank(i, end);
    } else if (rest.starts_with("/*")) {
      end = std::min(text.find("*/", i + 2), text.size() - 2) + 2;
      blank(i, end);
    } else if (rest.starts_with("R\"") && (i == 0 || !IsWordCharacter(text[i - 1]))) {
      const std::string close = ")" + text.substr(i + 2, text.find('(', i) - i - 2) + "\"";
      end = std::min(text.find(close, i), text.size() - close.size()) + close.size();
      blank(i + 2, end - 1);
    } else if (rest[0] == '"' || (rest[0] == '\'' && (i == 0 || !IsWordCharacter(text[i - 1])))) {
      while (end < text.size() && text[end] != rest[0] && text[end] != '\n')
        end += text[end] == '\\' ? 2 : 1;
      blank(i + 1, end);
      ++end;
    }
    i = end;
  }
  return code;
}

SourceFile MakeFile(const std::string& path, const std::string& text) {
  SourceFile file{.path = path, .text = text, .code = {}};
  if (IsCpp(file)) file.code = BlankOut(text);
  return file;
}

Problems CheckTopLevel(const std::vector<std::string>& names) {
  const std::set<std::string> known = {"CMakeLists.txt", "CMakePresets.json", "README.md",
                                       "LICENSE"};
  Problems problems;
  for (const std::string& name : names)
    if (!known.contains(name) && !name.starts_with('.') && !name.starts_with("build") &&
        std::find(std::begin(kTopFolders), std::end(kTopFolders), name) == std::end(kTopFolders))
      problems.push_back(name + ": does not belong at the top; move it into a folder or delete it");
  return problems;
}

namespace {

struct Include {
  std::string path;
  bool quoted = false;
  size_t line = 0;
};

std::vector<Include> IncludesOf(const SourceFile& file) {
  std::vector<Include> includes;
  const std::vector<std::string> lines = Lines(file.text), code = Lines(file.code);
  for (size_t i = 0; i < lines.size(); ++i) {
    const std::string& line = lines[i];
    if (!code[i].starts_with('#') || line.find("include") == line.npos) continue;
    const size_t open = line.find_first_of("<\"");
    const size_t close = line.find_first_of(">\"", open + 1);
    if (open == line.npos || close == line.npos) continue;
    includes.push_back({line.substr(open + 1, close - open - 1), line[open] == '"', i + 1});
  }
  return includes;
}

}  // namespace

const std::map<std::string, Words>& FoldersBelow() {
  static const std::map<std::string, Words> below = {
      {"runtime/base", {}},
      {"kernels", {}},
      {"ckpt", {}},
      {"monitoring", {}},
      {"model", {"kernels"}},
      {"ckpt/convert", {"ckpt", "model"}},
      {"runtime/comm", {"kernels"}},
      {"runtime/data", {}},
      {"runtime/train", {"runtime/comm", "runtime/data", "model", "kernels", "ckpt", "monitoring"}},
      {"runtime/control", {}},
      {"runtime/wire", {}},
      {"runtime/agent",
       {"runtime/control", "runtime/wire", "runtime/train", "runtime/comm", "runtime/data", "model",
        "kernels", "ckpt", "monitoring"}},
      {"launch/slurm", {}},
      {"launch",
       {"launch/slurm", "runtime/agent", "runtime/control", "runtime/wire", "runtime/train",
        "runtime/comm", "runtime/data", "model", "kernels", "ckpt/convert", "ckpt", "monitoring"}},
  };
  return below;
}

std::string PartOf(const std::string& path) {
  const size_t first = path.find('/');
  if (first == path.npos) return "";
  for (const std::string_view inner : {"ckpt/convert", "launch/slurm"})
    if (path.starts_with(std::string(inner) + "/")) return std::string(inner);
  if (!path.starts_with("runtime/")) return path.substr(0, first);
  return path.substr(0, std::min(path.find('/', first + 1), path.size()));
}

Problems CheckIncludeDirection(const Files& files) {
  Problems problems;
  for (const SourceFile& file : files) {
    if (!IsCpp(file) || file.path.starts_with("tests/")) continue;
    const std::string part = PartOf(file.path);
    const auto below = FoldersBelow().find(part);
    if (below == FoldersBelow().end()) {
      problems.push_back(file.path + ": " + part +
                         " has no place in FoldersBelow() of tests/tidy_rules.cc");
      continue;
    }
    for (const Include& include : IncludesOf(file)) {
      const std::string target = PartOf(include.path);
      if (!include.quoted || target == "absl" || target == part || target == "runtime/base")
        continue;
      if (std::find(below->second.begin(), below->second.end(), target) == below->second.end())
        problems.push_back(At(file, include.line) + part + " may not include " + include.path +
                           ": launch -> runtime -> {model -> kernels, ckpt, monitoring}");
    }
  }
  return problems;
}

namespace {

// Who may name a library's headers. A header of none of these is a problem by itself.
const std::map<std::string_view, Words>& Libraries() {
  static const std::map<std::string_view, Words> libraries = {
      {"absl/", {""}},
      {"fmt/", {""}},
      {"nlohmann/", {"ckpt/", "monitoring/", "runtime/agent/", "launch/", "tests/"}},
      {"hdf5.h", {"ckpt/store_hdf5"}},
      {"H5FDdevelop.h", {"ckpt/store_hdf5"}},
      {"xxhash.h", {"runtime/base/digest.cc"}},
      {"sodium.h",
       {"runtime/agent/run_key.cc", "runtime/agent/run_log_format.cc", "runtime/wire/job_key.cc",
        "runtime/wire/noise.cc", "runtime/wire/secret.cc", "tests/wire/"}},
      {"dnnl", {"kernels/cpu/matmul", "tests/bench/"}},
      // CUDA's: each library has its file; cuda_ops.cc asks both for their versions.
      {"cublasLt.h",
       {"kernels/cuda/matmul", "kernels/cuda/cublaslt_lazy", "kernels/cuda/cuda_ops.cc"}},
      {"cudnn_graph.h",
       {"kernels/cuda/attention_cudnn", "kernels/cuda/cudnn_graph.h", "kernels/cuda/cuda_ops.cc"}},
      {"cub/", {"kernels/cuda/"}},
      {"cuda_bf16.h", {"kernels/cuda/"}},
      {"cuda_runtime.h", {"kernels/cuda/"}},
      {"cuda_runtime_api.h", {"kernels/cuda/", "runtime/comm/nccl_"}},
      {"nccl.h", {"runtime/comm/nccl_"}},
      {"omp.h", {"kernels/cpu/matmul", "tests/kernels/matmul_test.cc"}},
      {"immintrin.h", {"kernels/cpu/vector_math.h"}},
      {"arm_neon.h", {"kernels/cpu/vector_math.h"}},
      {"ucp/", {"runtime/comm/transport_ucx.cc"}},
      {"ucs/", {"runtime/comm/transport_ucx.cc"}},
      {"uct/", {"runtime/comm/transport_ucx.cc"}},
      {"rdma/", {"runtime/comm/transport_ofi.cc"}},
      {"sentencepiece", {"runtime/data/sentencepiece_model.cc", "tests/data/foreign_model.cc"}},
      {"prometheus/", {"monitoring/exposition", "monitoring/run_metrics", "tests/monitoring/"}},
      {"microhttpd.h", {"monitoring/http_endpoint.cc"}},
      {"zlib.h", {"runtime/data/gunzip.cc", "tests/data/"}},
      {"toml++/", {"launch/config"}},
      {"CLI/", {"launch/", "tests/"}},
      {"gtest/", {"tests/"}},
      {"gmock/", {"tests/"}},
      {"benchmark/", {"tests/bench/"}},
      // The operating system's; kernels and model compute and call nobody else.
      {"sys/mman.h", {"kernels/cpu/cpu_ops.cc", "runtime/", "ckpt/", "tests/"}},
      {"sys/epoll.h", {"runtime/wire/", "runtime/comm/", "tests/"}},
      {"sys/", {"runtime/", "ckpt/", "monitoring/", "launch/", "tests/"}},
      {"net/", {"runtime/comm/", "runtime/wire/wire_sockets"}},
      {"netinet/",
       {"runtime/comm/", "runtime/wire/wire_sockets", "tests/cluster/", "tests/comm/",
        "tests/launch/hooks_test", "tests/security/", "tests/wire/"}},
      {"arpa/", {"runtime/comm/", "runtime/wire/wire_sockets", "tests/comm/", "tests/wire/"}},
      {"ifaddrs.h", {"runtime/comm/", "runtime/wire/wire_sockets"}},
      {"pty.h", {"tests/"}},
      {"grp.h", {"tests/"}},                       // Attackers are other users.
      {"pwd.h", {"launch/site_check", "tests/"}},  // Accounting knows users by name.
      {"malloc.h", {"launch/reshard_command", "tests/"}},
      {"sched.h", {"tests/"}},
      {"linux/", {"tests/"}},
      {"dlfcn.h", {"runtime/agent/device_watch", "kernels/cuda/cublaslt_lazy", "tests/"}},
      {"dirent.h", {"runtime/", "ckpt/", "tests/"}},
      {"fcntl.h", {"runtime/", "ckpt/", "monitoring/", "launch/", "tests/"}},
      {"netdb.h", {"launch/node_command", "monitoring/http_endpoint.cc"}},
      {"poll.h", {"runtime/", "launch/", "tests/"}},
      {"spawn.h", {"launch/slurm/command.cc", "tests/launch/prometheus_test.cc"}},
      {"signal.h", {"runtime/agent/", "runtime/wire/event_loop", "launch/", "tests/"}},
      {"unistd.h", {"runtime/", "ckpt/", "monitoring/", "launch/", "tests/"}},
  };
  return libraries;
}

}  // namespace

Problems CheckLibraryHeaders(const Files& files) {
  Problems problems;
  for (const SourceFile& file : files) {
    if (!IsCpp(file)) continue;
    for (const Include& include : IncludesOf(file)) {
      const bool own = include.quoted && !include.path.starts_with("absl/");
      const bool standard = include.path.find_first_of("./") == std::string::npos;
      if (own || standard) continue;
      const Words* users = nullptr;  // Of the longest name that fits: sys/mman.h before sys/.
      for (const auto& [name, who] : Libraries())
        if (include.path.starts_with(name)) users = &who;
      if (users == nullptr)
        problems.push_back(At(file, include.line) + "<" + include.path +
                           ">: say in Libraries() of tests/tidy_rules.cc who may name this header");
      else if (!StartsWithAny(file.path, *users))
        problems.push_back(At(file, include.line) + "<" + include.path + "> belongs to " +
                           std::string(users->front()) + " and its family only");
    }
  }
  return problems;
}

namespace {

std::vector<std::string> CMakeWords(const std::string& text) {
  std::vector<std::string> words;
  std::string word;
  for (const std::string& line : Lines(text)) {
    for (const char c : line.substr(0, line.find('#')) + " ") {
      if (c != '(' && c != ')' && c != '"' && !std::isspace(static_cast<unsigned char>(c))) {
        word += c;
        continue;
      }
      if (!word.empty()) words.push_back(word);
      if (c == '(' || c == ')') words.emplace_back(1, c);
      word.clear();
    }
  }
  return words;
}

struct CMakeList {
  std::set<std::string> all, tests;  // Words; those inside perdure_test(...).
};

// Words that name a foreach variable appear once with each of its values.
CMakeList ReadCMake(const std::string& text) {
  CMakeList list;
  std::map<std::string, std::vector<std::string>> values;
  const std::vector<std::string> words = CMakeWords(text);
  bool in_test = false;
  for (size_t i = 0; i < words.size(); ++i) {
    if (words[i] == "foreach")
      for (size_t v = i + 3; v < words.size() && words[v] != ")"; ++v)
        values[words[i + 2]].push_back(words[v]);
    if (words[i] == "perdure_test") in_test = true;
    if (words[i] == ")") in_test = false;
    std::vector<std::string> meant = {words[i]};
    for (const auto& [name, each] : values) {
      const std::string variable = "${" + name + "}";
      const size_t at = words[i].find(variable);
      if (at == std::string::npos) continue;
      for (const std::string& value : each)
        meant.push_back(std::string(words[i]).replace(at, variable.size(), value));
    }
    list.all.insert(meant.begin(), meant.end());
    if (in_test) list.tests.insert(meant.begin(), meant.end());
  }
  return list;
}

}  // namespace

Problems CheckSourcesListed(const Files& files) {
  Problems problems;
  std::map<std::string, CMakeList> lists;  // By folder.
  for (const SourceFile& file : files) {
    if (!file.path.ends_with("CMakeLists.txt")) continue;
    CMakeList& list = lists[FolderOf(file.path)] = ReadCMake(file.text);
    for (const char* glob : {"GLOB", "GLOB_RECURSE"})
      if (list.all.contains(glob))
        problems.push_back(file.path + ": list sources by name, no GLOB");
    for (const char* flag : {"-ffast-math", "-Ofast", "-march=native"})
      if (list.all.contains(flag)) problems.push_back(file.path + ": " + flag + " changes bits");
  }
  for (const auto& [folder, list] : lists) {
    const bool of_tests = folder.starts_with("tests/");
    const std::string name = of_tests ? folder.substr(6) : folder;
    if (!folder.empty() && !lists[of_tests ? "tests" : ""].all.contains(name))
      problems.push_back(folder + ": its CMakeLists.txt is not reached; add it to " +
                         (of_tests ? "tests/" : "") + "CMakeLists.txt");
  }
  for (const SourceFile& file : files) {
    // A model of the protocol that no test checks says nothing.
    if (!IsSource(file) && !file.path.ends_with(".pml")) continue;
    std::string folder = FolderOf(file.path);
    while (!folder.empty() && !lists.contains(folder)) folder = FolderOf(folder);
    const std::string name = folder.empty() ? file.path : file.path.substr(folder.size() + 1);
    const CMakeList& list = lists[folder];
    if (!list.all.contains(name))
      problems.push_back(file.path + ": not listed in " + folder + "/CMakeLists.txt");
    else if (name.ends_with("_test.cc") && !list.tests.contains(name))
      problems.push_back(file.path + ": not in a perdure_test() of " + folder + "/CMakeLists.txt");
  }
  return problems;
}

const std::vector<Ban>& Bans() {
  static const Words kNumbers = {"kernels/", "model/", "ckpt/", "runtime/base/", "runtime/data/"};
  static const std::vector<Ban> bans = {
      {{"random_device"}, {}, {"launch/"}, "random numbers are functions of their address"},
      {{"mt19937", "mt19937_64", "default_random_engine", "minstd_rand", "rand(", "srand(",
        "BitGen", "std::shuffle"},
       {},
       {"tests/"},
       "random numbers are functions of their address: runtime/base/random.h"},
      {{"throw"}, {}, {"launch/"}, "we throw nothing: return a Status"},
      {{"getenv(", "secure_getenv("},
       {},
       {"launch/", "tests/"},
       "launch alone reads the environment"},
      {{"setenv(", "putenv("},
       {},
       // UCX, libfabric and NCCL have settings that only the environment can change.
       {"runtime/comm/transport_ucx.cc", "runtime/comm/transport_ofi.cc",
        "runtime/comm/make_collectives.cc", "launch/", "tests/"},
       "launch alone sets the environment"},
      {{"#pragma omp"}, {}, {}, "one thread per rank; threads are the matmul library's"},
      {{"std::thread", "std::jthread", "std::async", "std::mutex", "pthread_create("},
       {"kernels/", "model/", "runtime/base/", "runtime/data/", "runtime/train/", "runtime/agent/",
        "runtime/wire/"},
       // parallel.cc: pieces that do not meet, filled or digested where no step is under way.
       // log_reader, run_checkpoints: the agent's loop, its log's thread and workers meet there.
       // rank_line, rank_main: who trains, who saves and who receives do.
       {"runtime/base/parallel.cc", "runtime/train/checkpoint_saver", "runtime/train/snapshots",
        "runtime/agent/device_watch", "runtime/agent/log_reader", "runtime/agent/rank_line",
        "runtime/agent/rank_main.cc", "runtime/agent/run_checkpoints", "runtime/agent/worker",
        "runtime/wire/event_loop"},
       "one thread of a rank computes; others move bytes for it, in files that say so"},
      {{"std::cout", "std::cerr", "std::clog", "printf(", "fprintf(", "fputs(", "puts("},
       {},
       {"launch/", "tests/", "runtime/base/check.cc"},
       "libraries return a Status; launch speaks to people"},
      {{"abort(", "exit(", "_exit(", "quick_exit("},
       {},
       // A forked child has nowhere to return to.
       {"launch/", "tests/", "runtime/base/check.cc", "runtime/agent/child_processes.cc",
        "runtime/agent/supervised_process.cc"},
       "libraries return a Status"},
      {{"assert("}, {}, {"tests/"}, "PERDURE_CHECK is on in release builds too"},
      {{"system_clock", "gettimeofday("},
       {},
       {"monitoring/", "launch/", "tests/"},
       "wall clocks are for people and decide nothing"},
      {{"steady_clock", "high_resolution_clock", "absl::Now", "clock_gettime("},
       kNumbers,
       {"runtime/data/build.cc", "ckpt/block_writer"},
       "no clock where numbers are made"},
      {{"unordered_map", "unordered_set", "flat_hash_map", "flat_hash_set"},
       {"model/", "ckpt/", "runtime/comm/", "runtime/wire/", "runtime/train/", "runtime/agent/",
        "launch/"},
       {},
       "the order of a hash table must reach no sum, message or file"},
      {{"std::reduce", "std::transform_reduce", "std::execution"}, {}, {}, "an order of summation"},
      // What libm gives depends on its version, and an element's result must not depend on where in
      // a vector it lies.
      {{"std::exp", "std::pow", "std::tanh", "std::sin", "std::cos"},
       {"kernels/"},
       {},
       "kernels have their own: kernels/cpu/vector_math.h"},
      // On a device these are no libm's: nvcc compiles them into the build.
      {{"expf(", "logf("},
       {"kernels/"},
       {"kernels/cuda/"},
       "kernels have their own: kernels/cpu/vector_math.h"},
      // The loss takes one logarithm a row, in fp64, of a sum that every layout has alike: one of
      // the three places where architecture.md admits libm.
      {{"std::log"},
       {"kernels/"},
       {"kernels/cpu/cross_entropy.cc"},
       "kernels have their own: kernels/cpu/vector_math.h"},
  };
  return bans;
}

Problems CheckBans(const Files& files) {
  Problems problems;
  // Spelled so that this file may say what it looks for.
  const std::string unfinished[] = {std::string("TO") + "DO", std::string("FIX") + "ME",
                                    std::string("XX") + "X"};
  for (const SourceFile& file : files) {
    if (!file.path.ends_with(".md"))
      for (const std::string& word : unfinished)
        for (const size_t at : FindWord(file.text, word))
          problems.push_back(At(file, LineOf(file.text, at)) + word + ": do it or file it");
    if (!IsCpp(file)) continue;
    for (const Ban& ban : Bans()) {
      if (!ban.where.empty() && !StartsWithAny(file.path, ban.where)) continue;
      if (StartsWithAny(file.path, ban.except)) continue;
      for (const std::string_view word : ban.words)
        for (const size_t at : FindWord(file.code, word))
          problems.push_back(At(file, LineOf(file.code, at)) + std::string(word) + ": " +
                             std::string(ban.why));
    }
  }
  return problems;
}

Problems CheckHeadersAndScripts(const Files& files) {
  Problems problems;
  for (const SourceFile& file : files) {
    if (file.path.ends_with(".sh") && file.text.find("\nset -euo pipefail\n") == std::string::npos)
      problems.push_back(file.path + ": a script begins with set -euo pipefail");
    if (!IsHeader(file)) continue;
    if (!file.text.starts_with("// "))
      problems.push_back(file.path +
                         ": a header opens with a comment: what it is and why it exists");
    if (("\n" + file.text).find("\n#pragma once\n") == std::string::npos)
      problems.push_back(file.path + ": a header has #pragma once");
    if (file.code.find("using namespace") != std::string::npos)
      problems.push_back(file.path + ": no using namespace in headers");
  }
  return problems;
}

namespace {

// In code points: what a person sees, near enough.
size_t Columns(std::string_view line) {
  return static_cast<size_t>(std::count_if(line.begin(), line.end(), [](char c) {
    return (static_cast<unsigned char>(c) & 0xC0U) != 0x80U;
  }));
}

// clang-format does not break one long word, nor does this rule ask for it.
bool IsBreakable(std::string_view line) {
  const size_t begin = line.find_first_not_of(" \t/");
  return begin != line.npos && line.find_first_of(" \t", begin) != line.npos;
}

}  // namespace

Problems CheckSizes(const Files& files) {
  Problems problems;
  for (const SourceFile& file : files) {
    if (!IsCpp(file) && !file.path.ends_with(".sh") && !file.path.ends_with(".py")) continue;
    const std::vector<std::string> lines = Lines(file.text);
    if (lines.size() > kFileLinesMax)
      problems.push_back(file.path + ": " + std::to_string(lines.size()) + " lines, more than " +
                         std::to_string(kFileLinesMax) + ": cut it at a seam");
    size_t wide = 0, first = 0;
    for (size_t i = 0; IsCpp(file) && i < lines.size(); ++i) {
      if (Columns(lines[i]) <= kColumnsMax || !IsBreakable(lines[i])) continue;
      if (wide++ == 0) first = i + 1;
    }
    if (wide > 0)
      problems.push_back(At(file, first) + std::to_string(wide) +
                         " lines from here on have more than " + std::to_string(kColumnsMax) +
                         " columns: clang-format -i");
  }
  return problems;
}

Problems CheckArchitectureNamesFolders(const Files& files) {
  std::string page;
  std::set<std::string> folders;
  for (const SourceFile& file : files) {
    if (file.path == "docs/architecture.md") page = file.text;
    if (IsCpp(file) && !file.path.starts_with("tests/")) folders.insert(FolderOf(file.path));
  }
  Problems problems;
  for (const std::string& folder : folders)
    if (page.find("**" + folder + "**") == page.npos &&
        page.find("**" + folder + ".**") == page.npos)
      problems.push_back("docs/architecture.md: its code map has no paragraph for " + folder);
  return problems;
}

Problems CheckLinks(const Files& files, const std::function<bool(const std::string&)>& exists) {
  Problems problems;
  for (const SourceFile& file : files) {
    if (!file.path.ends_with(".md")) continue;
    for (size_t at = file.text.find("]("); at != std::string::npos;
         at = file.text.find("](", at + 1)) {
      const size_t end = file.text.find(')', at);
      std::string link = file.text.substr(at + 2, end - at - 2);
      link = link.substr(0, link.find('#'));
      if (link.empty() || link.find("://") != std::string::npos) continue;
      const std::string target =
          (fs::path(FolderOf(file.path)) / link).lexically_normal().generic_string();
      if (!exists(target))
        problems.push_back(At(file, LineOf(file.text, at)) + "there is no " + target);
    }
  }
  return problems;
}

}  // namespace perdure
