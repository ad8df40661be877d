// The process under which a cluster of a test lives: it starts the daemons, inherits whatever they
// and their jobs leave behind (PR_SET_CHILD_SUBREAPER), and when the test says so or has died, by
// whatever signal, it kills all of that, removes the cluster's directory, and exits. So a test that
// crashes leaves nothing. Only when the warden itself is killed do jobs outlive it, without
// daemons.
//
// The program is warden_main.cc. A Warden belongs to the thread that started it, which lives
// longer.
#pragma once

#include <sys/types.h>

#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace perdure {

class Warden {
 public:
  // `environment`: "NAME=value" of all that it starts, `mark` among them: who was started with that
  // is taken for the cluster's, wherever it stands. `directory` is removed at the end.
  static absl::StatusOr<std::unique_ptr<Warden>> Start(const std::vector<std::string>& environment,
                                                       const std::string& mark,
                                                       const std::string& directory);
  ~Warden();  // Stop.
  Warden(const Warden&) = delete;
  Warden& operator=(const Warden&) = delete;

  pid_t pid() const { return pid_; }
  // Starts a program (argv[0] is searched for), its output appended to `output`. Its id; a program
  // that does not exist ends with code 127.
  absl::StatusOr<pid_t> Run(const std::vector<std::string>& argv, const std::string& output);
  // Ends everything, and waits for it. Internal: something could not be killed.
  absl::Status Stop();

 private:
  Warden(pid_t pid, int socket) : pid_(pid), socket_(socket) {}
  pid_t pid_;
  int socket_;
};

}  // namespace perdure
