#!/usr/bin/env python3
"""Makes the dashboards in dashboards/: make_dashboards.py [DIRECTORY]. Change them here, not there."""
import json
import os
import sys

SELECTOR = 'job=~"$job",instance=~"$instance",run=~"$run"'
SOURCE = {"type": "prometheus", "uid": "$datasource"}


def target(expression, legend):
    return {"datasource": SOURCE, "expr": expression.replace("SEL", SELECTOR), "legendFormat": legend, "refId": "A"}


def panel(kind, title, description, unit, targets, width=12, height=8, **more):
    for letter, one in zip("ABCDEFGH", targets):
        one["refId"] = letter
    body = {"type": kind, "title": title, "description": description, "datasource": SOURCE, "targets": targets,
            "fieldConfig": {"defaults": {"unit": unit, "custom": {}}, "overrides": []}, "options": {},
            "width": width, "height": height}
    if kind == "timeseries":
        body["options"] = {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi"}}
        body["fieldConfig"]["defaults"]["custom"] = {"lineWidth": 1, "fillOpacity": more.pop("fill", 0),
                                                     "stacking": {"mode": more.pop("stacking", "none")},
                                                     "scaleDistribution": {"type": more.pop("scale", "linear")}}
    if kind == "stat":
        body["options"] = {"reduceOptions": {"calcs": ["lastNotNull"]}, "colorMode": "value"}
    body.update(more)
    return body


def line(title, description, unit, *targets, **more):
    return panel("timeseries", title, description, unit, [target(*one) for one in targets], **more)


def stat(title, description, unit, expression, **more):
    return panel("stat", title, description, unit, [target(expression, "{{run}}")], width=4, height=4, **more)


def variable(name, label, query):
    return {"name": name, "label": label, "type": "query", "datasource": SOURCE, "query": {"query": query, "refId": name},
            "definition": query, "refresh": 2, "multi": True, "includeAll": True, "allValue": ".+", "sort": 1,
            "current": {"text": "All", "value": "$__all"}}


def dashboard(uid, title, description, panels):
    placed, x, y, row = [], 0, 0, 0
    for number, body in enumerate(panels, 1):
        width, height = body.pop("width"), body.pop("height")
        if x + width > 24:
            x, y, row = 0, y + row, 0
        body.update({"id": number, "gridPos": {"x": x, "y": y, "w": width, "h": height}})
        x, row = x + width, max(row, height)
        placed.append(body)
    failures = target("changes(perdure_generation{SEL}[$__interval]) > 0", "")["expr"]
    return {"uid": uid, "title": title, "description": description, "schemaVersion": 39, "version": 1, "editable": False,
            "tags": ["perdure"], "time": {"from": "now-24h", "to": "now"}, "refresh": "30s", "timezone": "browser",
            "graphTooltip": 1, "panels": placed,
            "links": [{"type": "dashboards", "tags": ["perdure"], "title": "Perdure", "asDropdown": True}],
            "annotations": {"list": [{"name": "Failures and changes", "datasource": SOURCE, "enable": True,
                                      "iconColor": "red", "expr": failures, "titleFormat": "another generation"}]},
            "templating": {"list": [
                {"name": "datasource", "label": "Data Source", "type": "datasource", "query": "prometheus",
                 "current": {}, "hide": 0},
                variable("job", "Job", "label_values(perdure_step, job)"),
                variable("instance", "Instance", 'label_values(perdure_step{job=~"$job"}, instance)'),
                variable("run", "Run", 'label_values(perdure_step{job=~"$job",instance=~"$instance"}, run)')]}}


def dashboards():
    yield "run", dashboard("perdure-run", "Perdure: run", "One run over all its jobs", [
        stat("Step", "Steps finished that count", "none", "max by (run) (perdure_step{SEL})"),
        stat("Done", "Of all steps that are planned", "percentunit",
             "max by (run) (perdure_step{SEL} / perdure_steps_planned{SEL})"),
        stat("Loss", "Of the newest step", "none", "max by (run) (perdure_loss{SEL})"),
        stat("Tokens a second", "Of the newest step", "none", "max by (run) (perdure_tokens_per_second{SEL})"),
        stat("Goodput", "Of the time of all jobs, what went into steps that count", "percentunit",
             "max by (run) (perdure_goodput_ratio{SEL})"),
        stat("Left of the job", "Until the job's time is over", "s", "max by (run) (perdure_job_time_left_seconds{SEL})"),
        line("Loss", "Mean over the tokens of a step", "none", ("max by (run) (perdure_loss{SEL})", "{{run}}"), width=24,
             height=10),
        line("Loss is finite", "0: NaN or infinite", "none", ("min by (run) (perdure_loss_is_finite{SEL})", "{{run}}"), width=8),
        line("Gradient norm", "Before clipping", "none", ("max by (run) (perdure_grad_norm{SEL})", "{{run}}"), width=8,
             scale="log"),
        line("Learning rate", "Of the newest step", "none", ("max by (run) (perdure_learning_rate{SEL})", "{{run}}"), width=8),
        line("Tokens trained on", "Position of the run", "none", ("max by (run) (perdure_tokens{SEL})", "{{run}} tokens"),
             ("max by (run) (perdure_samples{SEL})", "{{run}} samples"), width=12, scale="log"),
        line("Batch and context", "Of the newest step", "none", ("max by (run) (perdure_batch_samples{SEL})", "{{run}} samples"),
             ("max by (run) (perdure_context_tokens{SEL})", "{{run}} tokens a sample")),
        line("State", "What the job does", "none", ("max by (run, state) (perdure_state{SEL})", "{{run}} {{state}}"),
             ("max by (run) (perdure_run_complete{SEL})", "{{run}} complete"), stacking="normal", fill=60),
        line("Ranks and nodes", "That train, and spares", "none", ("max by (run) (perdure_ranks{SEL})", "{{run}} ranks"),
             ("max by (run) (perdure_nodes{SEL})", "{{run}} nodes"), ("max by (run) (perdure_spare_nodes{SEL})", "{{run}} spare nodes"),
             ("max by (run) (perdure_replicas{SEL})", "{{run}} replicas")),
        line("Jobs", "That have begun, and how those before ended", "none", ("max by (run) (perdure_jobs{SEL})", "{{run}} begun"),
             ("sum by (run, outcome) (increase(perdure_jobs_total{SEL}[$__range]))", "{{run}} {{outcome}} in this range")),
        line("Wait between jobs", "From the end of one to the beginning of the next", "s",
             ("max by (run) (perdure_job_wait_seconds{SEL})", "{{run}}")),
        panel("table", "Runs", "What trains, and how", "none",
              [dict(target("max by (run, layout, dtype, backend, transport, trainer) (perdure_run_info{SEL})", ""), format="table",
                    instant=True),
               dict(target("max by (run, phase) (perdure_phase_info{SEL})", ""), format="table", instant=True),
               dict(target("max by (run, version) (perdure_build_info{SEL})", ""), format="table", instant=True)], width=24,
              height=6)])
    yield "recovery", dashboard("perdure-recovery", "Perdure: recovery and goodput", "Failures, what they cost, checkpoints", [
        line("Where the time went", "Seconds of all jobs so far", "s",
             ("sum by (kind) (perdure_goodput_seconds{SEL,kind!=\"queued\"})", "{{kind}}"), width=24, stacking="normal", fill=60),
        line("Goodput over the chain", "Steps that count over time that jobs had nodes", "percentunit",
             ("max by (run) (perdure_goodput_ratio{SEL})", "{{run}}")),
        line("Queued", "Time between jobs so far", "s",
             ("sum by (run) (perdure_goodput_seconds{SEL,kind=\"queued\"})", "{{run}}")),
        line("Failures", "That stopped a generation, by the first thing that failed", "none",
             ("sum by (kind) (increase(perdure_failures_total{SEL}[$__rate_interval]))", "{{kind}}")),
        line("Recoveries", "By where the state came from", "none",
             ("sum by (from) (increase(perdure_recoveries_total{SEL}[$__rate_interval]))", "{{from}}")),
        line("Time of recoveries", "By part", "s",
             ("sum by (part) (increase(perdure_recovery_part_seconds_total{SEL}[$__rate_interval]))", "{{part}}"), stacking="normal",
             fill=60),
        line("Steps taken again, rollbacks", "Within the interval", "none",
             ("sum by (run) (increase(perdure_steps_redone_total{SEL}[$__rate_interval]))", "{{run}} steps again"),
             ("sum by (run) (increase(perdure_rollbacks_total{SEL}[$__rate_interval]))", "{{run}} rollbacks")),
        line("Generation", "Rises with each recovery and change", "none", ("max by (run) (perdure_generation{SEL})", "{{run}}")),
        line("Age of the newest checkpoint", "Since it was committed", "s",
             ("time() - max by (run) (perdure_checkpoint_timestamp_seconds{SEL})", "{{run}}")),
        line("Step of the newest checkpoint", "Beside the run's", "none",
             ("max by (run) (perdure_checkpoint_step{SEL})", "{{run}} checkpoint"), ("max by (run) (perdure_step{SEL})", "{{run}}")),
        line("Checkpoints", "By what became of them", "none",
             ("sum by (outcome) (increase(perdure_checkpoints_total{SEL}[$__rate_interval]))", "{{outcome}}")),
        line("Time of checkpoints", "The newest one's, and what training stood still for", "s",
             ("max by (run) (perdure_checkpoint_duration_seconds{SEL})", "{{run}} took"),
             ("sum by (run) (increase(perdure_checkpoint_stall_seconds_total{SEL}[$__rate_interval]))", "{{run}} stood still")),
        line("Bytes of a checkpoint", "Of the newest", "bytes", ("max by (run) (perdure_checkpoint_bytes{SEL})", "{{run}}")),
        line("Room left", "In the file system of the run", "bytes",
             ("min by (run) (perdure_file_system_avail_bytes{SEL})", "{{run}} left"),
             ("max by (run) (perdure_file_system_size_bytes{SEL})", "{{run}} size")),
        line("Files left", "In the file system of the run", "none",
             ("min by (run) (perdure_file_system_avail_files{SEL})", "{{run}}"))])
    yield "performance", dashboard("perdure-performance", "Perdure: performance", "How fast steps are, and what is in them", [
        line("Time of a step", "Half of the steps take less, and 99 in 100", "s",
             ("histogram_quantile(0.5, sum by (run, le) (rate(perdure_step_duration_seconds_bucket{SEL}[$__rate_interval])))",
              "{{run}} median"),
             ("histogram_quantile(0.99, sum by (run, le) (rate(perdure_step_duration_seconds_bucket{SEL}[$__rate_interval])))",
              "{{run}} 99 %")),
        line("Parts of a step", "On rank 0: computing, and waiting inside communication", "percentunit",
             ("sum by (run, part) (rate(perdure_step_part_seconds_total{SEL}[$__rate_interval]))", "{{run}} {{part}}"),
             stacking="normal", fill=60),
        line("Steps a second", "Also those that were taken again", "none",
             ("sum by (run) (rate(perdure_steps_total{SEL}[$__rate_interval]))", "{{run}}")),
        line("Tokens a second and rank", "Of the newest step", "none",
             ("max by (run) (perdure_tokens_per_second_per_rank{SEL})", "{{run}}")),
        line("Model FLOP/s utilisation", "Needs monitoring.peak_tflops", "percentunit",
             ("max by (run) (perdure_model_flops_utilization_ratio{SEL})", "{{run}}")),
        line("Slow nodes", "Work of their worst rank over that of the others", "none",
             ("max by (run, node) (perdure_node_slow_ratio{SEL})", "{{run}} {{node}}")),
        line("The exporting agent", "Processor, memory, descriptors", "none",
             ("rate(process_cpu_seconds_total{SEL}[$__rate_interval])", "{{run}} cores"),
             ("process_resident_memory_bytes{SEL} / 1e6", "{{run}} MB"), ("process_open_fds{SEL}", "{{run}} descriptors"),
             scale="log"),
        line("Exporter", "How long it takes to make what is served, and how old that is", "s",
             ("max by (run) (perdure_exporter_refresh_seconds{SEL})", "{{run}} takes"),
             ("time() - max by (run) (perdure_exporter_refresh_timestamp_seconds{SEL})", "{{run}} old"))])


directory = sys.argv[1] if len(sys.argv) > 1 else os.path.join(os.path.dirname(os.path.abspath(__file__)), "dashboards")
for name, body in dashboards():
    with open(os.path.join(directory, f"perdure-{name}.json"), "w") as file:
        file.write(json.dumps(body, indent=1, sort_keys=True) + "\n")
