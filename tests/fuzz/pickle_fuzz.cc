// Pickles, and views of every value in them.
#include "ckpt/convert/pickle.h"
#include "ckpt/convert/pickle_view.h"
#include "tests/fuzz/fuzz_input.h"

namespace perdure {
namespace {

void Look(const PickleValue& value, int depth) {
  FuzzCheck(DescribePickle(value).size() < 1000);
  const PickleView view(value, "fuzz");
  (void)view.Int();
  (void)view.Number();
  (void)view.String();
  (void)view.Ints();
  (void)view.Find("state");
  (void)view.Fields("torch", "Size");
  (void)view.CallArguments("collections", "OrderedDict", 0);
  const auto pairs = view.Pairs();
  const auto items = view.Items();
  if (depth == 0) return;
  int left = 20;
  for (const PickleValue* item : value.items)
    if (--left > 0) Look(*item, depth - 1);
}

}  // namespace
}  // namespace perdure

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace perdure;
  const auto tree = Unpickle(std::string(FuzzText(data, size)), "fuzz");
  if (!tree.ok()) return 0;
  FuzzCheck(tree->nodes() <= size);
  Look(tree->root(), 3);
  return 0;
}
