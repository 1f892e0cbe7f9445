//go:build ignore

// SPDX-License-Identifier: GPL-2.0
/* No program: the maps by themselves, so that they can be made before any program, and the types Go needs. */
#include "culvert.h"

const enum counter *counter_type __attribute__((unused));
const enum outcome *outcome_type __attribute__((unused));
const enum mode *mode_type __attribute__((unused));
const enum listener_slot *listener_slot_type __attribute__((unused));
const enum workload_flag *workload_flag_type __attribute__((unused));
const enum probe_state *probe_state_type __attribute__((unused));
const struct refusal *refusal_type __attribute__((unused));
