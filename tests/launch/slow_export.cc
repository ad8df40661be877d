// Preloaded into a program, a file system that does not answer: the directory of an export is not
// made while RUN/hold is there, that of a checkpoint not while RUN/hold_ckpt is.
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <string>
#include <utility>

extern "C" int mkdir(const char* path, mode_t mode) {
  const std::string text(path);
  for (const auto& [name, hold] : {std::pair("/export/step", "/hold"), {"/ckpt/s", "/hold_ckpt"}})
    if (const auto at = text.find(name); at != std::string::npos)
      while (::access((text.substr(0, at) + hold).c_str(), F_OK) == 0) ::usleep(10'000);
  return ::mkdirat(AT_FDCWD, path, mode);
}
