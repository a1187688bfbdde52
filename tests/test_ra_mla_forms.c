// SPDX-License-Identifier: MIT
/*
 * ra_mla in the form that this configuration does not execute, compiled under other
 * names: the same outputs and the same gradients, in one binary.
 */
#include "forms.h"

#ifdef ra_mla_TAPS_READ		/* the mixer is on */
#define RA_MLA_EXPANDED ((int)D > (int)L)
#define ra_mla_attn other_attn
#define ra_mla_form_fwd other_form_fwd
#define ra_mla_keys other_keys
#define ra_mla_out other_out
#define ra_mla_form_bwd other_form_bwd
#define ra_mla_form_work other_form_work
#undef MIXER_REGISTER
#define MIXER_REGISTER(ops)
#include "../model/mixer/ra_mla_form.c"
#include "../model/mixer/ra_mla.c"

int main(void)
{
	const struct mixer *x = mixer_find("ra_mla");

	device_open(1);
	forms_agree(x, &ra_mla, x->taps_written, "all taps read");
	forms_agree(x, &ra_mla, 0, "no tap read");
	return tap_done();
}
#else
int main(void)
{
	ok(true, "expanded = absorbed # SKIP needs ra_mla");
	return tap_done();
}
#endif
