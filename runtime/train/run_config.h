// A run's configuration, as plain data. launch/config reads it from run.toml; one table there names
// every field.
//
// [run], [model], [data], [[phase]], [optimizer] and [numerics] fix the bits and are frozen when
// the run begins (phases that have not begun may still change); [layout], [job], [checkpoint],
// [snapshot], [integrity] (but for what makes a step bad and rollback_steps, which are frozen),
// [monitoring] may change at every start.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "model/config.h"

namespace perdure {

// Samples per step as a function of consumed samples (Megatron's --rampup-batch-size).
struct BatchConfig {
  int64_t initial = 0;
  int64_t increment = 0;
  int64_t ramp_samples = 0;  // 0: no ramp; every step has `final` samples.
  int64_t final = 0;
};

// Learning rate as a function of consumed samples.
struct RateConfig {
  double peak = 0;
  double final = 0;
  int64_t warmup_samples = 0;      // Linear from 0.
  std::string decay = "constant";  // "cosine", "linear", "constant".
};

struct SourceConfig {
  std::string path;   // Prefix of PATH.bin and PATH.idx, relative to the data directory.
  double weight = 0;  // Share of the samples; weights are normalised by their sum.
};

struct PhaseConfig {
  std::string name;
  int64_t samples = 0;  // The phase ends when a further whole step would exceed it.
  int64_t context = 0;  // Tokens per sample.
  double rope_theta = 10000;
  BatchConfig batch;
  RateConfig rate;
  std::vector<SourceConfig> mixture;
  std::string nodes;  // Overrides [job] nodes for this phase; empty: no.
};

struct OptimizerConfig {
  std::string kind = "adamw";
  double beta1 = 0.9;
  double beta2 = 0.95;
  double eps = 1e-8;
  double weight_decay = 0.1;  // Of matrices; norm weights do not decay.
  double clip = 1.0;          // Global gradient norm; 0: no clipping.
};

struct NumericsConfig {
  std::string dtype = "fp32";  // "fp32" or "bf16" (fp32 master values and gradients).
  int64_t tensor_shards =
      4;                    // V of docs/architecture.md: a power of two; layout.tensor divides it.
  int64_t micro_batch = 1;  // Samples.
  int64_t leaf = 1;         // Micro-batches per leaf.
  int64_t atom_elements = 262144;  // The most elements of an atom.
  int64_t threads = 1;             // Per rank, inside matmuls.
  // "cpu" or "cuda"; "auto" is replaced at the run's first start, and so is isa's: the instruction
  // set of the matmul library, or what CudaIsa says of the GPU.
  std::string backend = "auto";
  std::string isa = "auto";
};

struct LayoutConfig {
  int64_t tensor = 1;
  int64_t pipeline = 1;
  int64_t data = 0;  // 0 = "auto": what is left of the ranks.
  int64_t zero = 1;  // 0, 1, 2 or 3: what is sharded over the data axis.
  int64_t virtual_stages =
      1;  // Model chunks per pipeline rank; above 1 the schedule is interleaved 1F1B.
  std::string recompute =
      "none";  // "none" or "full": activations kept, or recomputed block by block.
  std::string transport = "ucx";  // "ucx" or "libfabric"; of threads of one process also "local".
  // How device memory gets from rank to rank: "nccl", "staged" (through the host), or "auto": nccl
  // where every rank has a GPU to itself. Says nothing where ranks compute in host memory.
  std::string device_transport = "auto";
  std::string
      network;  // Passed to the transport: UCX_TLS or a libfabric provider; empty: its choice.

  int64_t ranks() const { return tensor * pipeline * data; }
};

struct JobConfig {
  absl::Duration time_limit = absl::Hours(20);
  std::string nodes = "1";  // "N" or "MIN-MAX".
  int64_t spares = 0;
  int64_t ranks_per_node = 1;
  bool health_check = true;  // Of each rank's device, before the job's first step.
  // A rank whose work takes that much of others', in percent, for so long (0: nobody is looked at)
  // is slow; a node that the job does without for that is tried again after slow_retry.
  absl::Duration slow_window = absl::Seconds(20);
  int64_t slow_percent = 150;
  absl::Duration slow_retry = absl::Hours(1);
  // What is left of a job's time when its processes have ended, if all takes as long as before.
  absl::Duration leave_margin = absl::Seconds(10);
  std::string interface;  // Where agents reach each other: "ib0", an address; empty: where the
                          // node's name leads.
  std::string hook;       // A program that is told what becomes of a chain; empty: none.
  // Jobs one after the other that committed no checkpoint, and the chain stops.
  int64_t no_progress_jobs = 3;
};

// What is asked of Slurm, and done before a job's first process. Empty: not said.
struct SlurmConfig {
  std::string site;  // A profile of launch/sites; what run.toml says itself counts more.
  std::string account, partition, qos, constraint, reservation;
  std::string account_suffix;            // Of the account, where it does not end so: "@h100".
  std::vector<std::string> options;      // Of sbatch besides: "--gres=gpu:4".
  std::vector<std::string> srun;         // Of srun besides: "--cpu-bind=none".
  std::vector<std::string> modules;      // Loaded in this order.
  std::vector<std::string> environment;  // "NAME=value", exported.
};

// A trainer that is not ours: a command that every rank runs in place of our own.
struct ExecConfig {
  std::vector<std::string> command;  // Empty: there is none.
  std::string directory;             // Where it runs; empty: where whoever started the job was.
  std::string signal = "TERM";       // That tells it to save and leave,
  absl::Duration leave = absl::Minutes(2);  // and how long that may take.
  absl::Duration stall;  // Without a line of progress for so long it hangs; 0: nobody looks.
};

struct CheckpointConfig {
  absl::Duration every = absl::Minutes(20);  // Also at the end of a phase and of a job.
  int64_t every_steps = 0;                   // Besides `every`; 0: no.
  int64_t keep_last = 3;
  int64_t keep_every_steps = 0;  // 0: none kept for ever, but phase ends.
  std::string files = "node";    // Ranks that share a file: "node", "rank" or a number of ranks.
  bool asynchronous = true;      // Freeze in one copy, write behind training; else training waits.
  int64_t write_mib_per_second = 0;   // Of one rank; 0: as fast as it goes.
  std::vector<int64_t> export_steps;  // Each has a checkpoint, which the run exports by itself.
  int64_t export_every_steps = 0;     // Besides; 0: none.
  std::string export_format = "hf";   // "hf", "universal" or "dcp".
  // "access": once a day, read a byte of every kept file, so that a purge of untouched ones leaves
  // it; "none": where the site forbids that.
  std::string refresh = "none";

  // Whether the state after so many steps is exported.
  bool exports(int64_t step) const {
    return (export_every_steps > 0 && step > 0 && step % export_every_steps == 0) ||
           std::find(export_steps.begin(), export_steps.end(), step) != export_steps.end();
  }
};

// The state in memory of other nodes: what a job resumes from when it loses some.
struct SnapshotConfig {
  int64_t every = 1;                   // Steps; 0: none.
  std::string directory = "/dev/shm";  // A tmpfs: each node makes a directory of its own there.
  bool peers = true;                   // Each rank's snapshot also goes to a rank of another node.
};

// What is looked for in the numbers and in memory: docs/integrity.md.
struct IntegrityConfig {
  bool check = true;        // State, gradients and copies of parameters are guarded by sums.
  int64_t audit_every = 0;  // Steps in which a leaf is computed again by another replica; 0: none.
  // What becomes of a step whose numbers are not finite, or that the bounds below exclude: "stop"
  // ends the job; "skip" consumes its samples and leaves the state as it is; "rollback" takes
  // rollback_steps steps before it again, and it, on other samples.
  std::string bad_step = "stop";
  int64_t rollback_steps = 10;
  int64_t rollbacks_max = 3;  // In a row, without getting on; then it ends like "stop".
  double grad_norm_max = 0;   // 0: any finite one.
  double spike_max = 0;       // As `spike`, but such a step is bad; 0: none is for that.
  double spike =
      10;  // From when on a step is computed twice before it is believed; 0: only bad ones.
};

struct MonitoringConfig {
  bool endpoint = true;   // Whether the coordinator's agent serves metrics over HTTP,
  int64_t port = 0;       // where; 0: any free port.
  std::string interface;  // "ib0", an address; empty: where agents reach each other.
  std::string token_file;   // Of the token that a scraper must show; empty: none.
  std::string certificate;  // PEM file, for TLS; empty: none.
  std::string textfile;     // Directory of node_exporter's textfile collector; empty: none.
  double peak_tflops = 0;   // Of one rank's device, in the run's dtype; 0: utilisation is not told.
  bool tensorboard = true;
};

struct RunConfig {
  std::string name;
  uint64_t seed = 0;
  ModelConfig model;
  std::string tokenizer = "byte";  // "byte", or the path of a SentencePiece model.
  std::vector<PhaseConfig> phases;
  OptimizerConfig optimizer;
  NumericsConfig numerics;
  LayoutConfig layout;
  JobConfig job;
  SlurmConfig slurm;
  ExecConfig exec;
  CheckpointConfig checkpoint;
  SnapshotConfig snapshot;
  IntegrityConfig integrity;
  MonitoringConfig monitoring;

  // Whether it runs a trainer that is not ours. What is trained is that one's to know: there are no
  // phases, and nothing of the model, the layout or the checkpoints means anything.
  bool foreign() const { return !exec.command.empty(); }
};

}  // namespace perdure
