// SPDX-License-Identifier: MIT
/*
 * recip in its joined form and, compiled under other names, in its direct form: the same
 * outputs and the same gradients, in one binary.
 */
#include "forms.h"

#ifdef recip_TAPS_READ		/* the mixer is on */
#define RECIP_DIRECT 1
#define recip_gate direct_gate
#define recip_cross direct_cross
#define recip_latent direct_latent
#define recip_hidden direct_hidden
#define recip_parts direct_parts
#define recip_rows_above direct_rows_above
#define joined_shape direct_shape
#define joined_beside direct_beside
#define joined_call direct_call
#define joined_fwd direct_fwd
#define joined_bwd direct_bwd
#undef MIXER_REGISTER
#define MIXER_REGISTER(ops)
#include "../model/mlp/recip.c"
#include "../model/mlp/recip_joined.c"
#include "../model/mlp/recip_gate.c"
#include "../model/mlp/recip_cross.c"
#include "../model/mlp/recip_latent.c"

int main(void)
{
	const struct mixer *x = mixer_find("recip");

	device_open(1);
	if (!x->form || !strcmp(x->form, recip.form)) {
		ok(true, "joined = direct # SKIP needs a mechanism, and heads averaged");
		return tap_done();
	}
	forms_agree(x, &recip, x->taps_written, "all taps read");
	forms_agree(x, &recip, 0, "no tap read");
	return tap_done();
}
#else
int main(void)
{
	ok(true, "joined = direct # SKIP needs recip");
	return tap_done();
}
#endif
