#include "tests/train/transport_threads.h"

#include <thread>

#include "runtime/base/check.h"

namespace perdure {

void RunTransportThreads(int ranks, const std::function<void(Transport* transport)>& body) {
  const std::shared_ptr<LocalHub> hub = NewLocalHub(ranks);
  std::vector<std::unique_ptr<Transport>> transports;
  std::vector<std::string> addresses;
  for (int r = 0; r < ranks; ++r) {
    transports.push_back(*NewTransport("local", {.rank = r, .size = ranks}, hub));
    addresses.push_back(*transports.back()->LocalAddress());
  }
  std::vector<std::thread> threads;
  for (int r = 0; r < ranks; ++r)
    threads.emplace_back([&, r] {
      const std::unique_ptr<Transport> transport = std::move(transports[static_cast<size_t>(r)]);
      PERDURE_CHECK(transport->Connect(addresses, absl::Seconds(30)).ok());
      body(transport.get());
    });
  for (std::thread& thread : threads) thread.join();
}

}  // namespace perdure
