/* SPDX-License-Identifier: MIT */
/*
 * Inside train/: the event file of a run.
 */
#ifndef TENON_EVENTS_H
#define TENON_EVENTS_H

#include <jansson.h>

#include "tfevents.h"

/* What this process trains: its name in a study, "" by itself, and the seed. Kept, not copied. */
void events_about(const char *label, int64_t seed);
/* The event file of a folder anew, with texts and hyper-parameters; NULL with errno. */
struct tfevents *events_create(const char *dir);
/* The curves of a row of metrics.jsonl. Returns: 0 or -errno */
int events_row(struct tfevents *t, json_t *row);

#endif
